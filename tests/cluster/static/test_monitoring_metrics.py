"""Code, documentation, chart, dashboards and rules name the same metrics, and the names are well formed."""

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.cluster.static.monitoring_registry import CHART, ROOT, by_series, recorded
from tests.cluster.static.monitoring_samples import VALUES
from tests.fakes.loopback_prometheus import tool
from tools.generate.service_metrics import BUILDERS, own_metrics

NAME = re.compile(r"(?<![\w:./-])searchrl_[a-z0-9_]+[a-z0-9]\b(?!\.)")
FILES = sorted(
    path
    for folder in (ROOT / "docs", CHART, ROOT / "services")
    for path in folder.rglob("*")
    if path.suffix in (".md", ".yaml", ".tpl", ".json", ".txt")
)
LABEL_LIMIT = {"version", "generation"}  # one or two values each at any time
BOUNDED = (
    {"owner"}
    | {label for values in VALUES.values() for label in values}
    | {
        "component",
        "transport",
        "kind",
        "state",
        "stop_reason",
    }
)


def names_in(path: Path) -> set[str]:
    return set(NAME.findall(path.read_text()))


def known_names() -> set[str]:
    families = own_metrics()
    return set(by_series(families)) | set(families)


@pytest.mark.parametrize(
    "path", [path for path in FILES if names_in(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_file_names_only_metrics_that_exist(path: Path) -> None:
    assert names_in(path) <= known_names()


@pytest.mark.parametrize("service", ["retriever", "generator", "evaluator", "trainer"])
def test_a_service_lists_its_metrics_in_its_readme(service: str) -> None:
    listed = names_in(ROOT / "services" / service / "README.md")
    exported = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in own_metrics().values()
        if family.owner == service
    }
    assert exported <= listed


@pytest.mark.parametrize("owner", BUILDERS)
def test_promtool_accepts_what_the_objects_expose(owner: str) -> None:
    registry = CollectorRegistry()
    BUILDERS[owner](registry)
    command = [tool("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=generate_latest(registry), capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", own_metrics())
def test_a_metric_has_our_prefix_a_text_and_bounded_labels(name: str) -> None:
    family = own_metrics()[name]
    assert name.startswith("searchrl_") and ":" not in name
    assert family.text.endswith(".") and len(family.text) <= 110
    assert set(family.labels) <= BOUNDED | LABEL_LIMIT
    assert not re.search(r"_(ms|milliseconds|percent|fraction|mb)\b", name)


@pytest.mark.parametrize("name", recorded())
def test_a_recorded_series_is_named_by_level_metric_and_operation(name: str) -> None:
    assert re.fullmatch(r"searchrl:[a-z_]+:[a-z0-9_]+", name)
