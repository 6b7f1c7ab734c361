"""Lists the metrics that exist and those that dashboards and rules query, from the metric objects and the files."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from tools.generate.service_metrics import Described

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy" / "helm" / "searchrl"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
RULES = sorted((CHART / "rules").glob("*.yaml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
HERE = Path(__file__).parent

# `run` comes from a label of a training run's pods; `exported_*` appear where a scrape does not honor labels.
SCRAPE_LABELS = frozenset(
    {"namespace", "job", "instance", "pod", "container", "run", "exported_namespace", "exported_pod"}
    | {"app_kubernetes_io_instance", "app_kubernetes_io_component"}
)
RANGES = frozenset({"rate", "increase", "irate"})
SUBSTITUTES = {"$__rate_interval": "5m", "$namespace": ".*", "$job": ".*", "$model": ".*", "$run": ".*"}


@dataclass(frozen=True)
class Selected:
    """One selector of a query: the series, the labels it matches, and the calls around it, innermost last."""

    series: str
    labels: frozenset[str]
    around: tuple[str, ...]


@cache
def external_metrics() -> dict[str, Described]:
    """Metrics that other programs export (vLLM, Kubernetes, DCGM, KubeRay, Kueue), pinned in external_metrics.yaml."""
    content = yaml.safe_load((HERE / "external_metrics.yaml").read_text())
    return {
        name: Described(
            name, entry["type"], tuple(entry["labels"]), "external", "", entry["labels"], entry.get("target", "engine")
        )
        for name, entry in content.items()
    }


def by_series(families: dict[str, Described]) -> dict[str, Described]:
    return {series: family for family in families.values() for series in family.series}


@cache
def recorded() -> dict[str, str]:
    """Recording rules: name and expression."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


@cache
def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield path.stem, panel


def panel_queries() -> list[tuple[str, str]]:
    """(where, expression) of every query of every panel, variables filled in."""
    return [
        (f"{name}: {panel['title']}: {target['refId']}", filled(target["expr"]))
        for name, panel in panels()
        for target in panel["targets"]
    ]


def filled(expr: str) -> str:
    for variable, value in SUBSTITUTES.items():
        expr = expr.replace(variable, value)
    return expr


def selectors(expr: str) -> list[Selected]:
    return list(_walk(promql_parser.parse(expr), ()))


def _walk(node: Any, around: tuple[str, ...]) -> Iterator[Selected]:
    """Yield every selector below a node, with the calls and aggregations around it."""
    if isinstance(node, promql_parser.VectorSelector):
        labels = frozenset(matcher.name for matcher in node.matchers.matchers)
        yield Selected(node.name or "", labels, around)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _walk(argument, (*around, node.func.name))
    elif isinstance(node, promql_parser.AggregateExpr):
        yield from _walk(node.expr, (*around, f"{node.op} {node.modifier or ''}".strip()))
    else:
        for name in ("expr", "lhs", "rhs", "vector_selector"):
            child = getattr(node, name, None)
            if child is not None:
                yield from _walk(child, around)


def grouping_labels(expr: str) -> set[str]:
    """Labels named in by, without, on, ignoring and group_left."""
    found = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expr)
    return {label.strip() for group in found for label in group.split(",") if label.strip()}
