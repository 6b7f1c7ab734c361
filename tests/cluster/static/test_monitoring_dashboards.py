"""The dashboards are complete and query only metrics that exist."""

import json
import re
from itertools import combinations
from typing import Any

import pytest

from tests.cluster.static.monitoring_registry import (
    DASHBOARDS,
    RANGES,
    SCRAPE_LABELS,
    by_series,
    external_metrics,
    filled,
    grouping_labels,
    panel_queries,
    panels,
    recorded,
    selectors,
)
from tools.generate.service_metrics import Described, own_metrics

NAMES = ("generator", "jobs", "overview", "retriever", "training")
QUERIES = panel_queries()
NOT_SHOWN: dict[str, str] = {}  # exported metrics that no panel needs, with the reason


def known_series() -> dict[str, Described]:
    return by_series(own_metrics() | external_metrics())


def test_the_five_dashboards_exist_and_differ() -> None:
    content = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert tuple(path.stem for path in DASHBOARDS) == NAMES
    for key in ("uid", "title"):
        assert len({one[key] for one in content}) == len(content)
    for one in content:
        identifiers = [panel["id"] for panel in one["panels"]]
        assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_the_data_source_is_always_the_variable(path: Any) -> None:
    found = set(re.findall(r'"uid": "([^"]*)"', path.read_text())) - {json.loads(path.read_text())["uid"]}
    assert found == {"${DS_PROMETHEUS}"}


@pytest.mark.parametrize(("name", "panel"), panels(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_panel_has_text_unit_and_a_place_of_its_own(name: str, panel: dict[str, Any]) -> None:
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    letters = [target["refId"] for target in panel["targets"]]
    assert letters and len(set(letters)) == len(letters)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap(path: Any) -> None:
    places = [panel["gridPos"] for panel in json.loads(path.read_text())["panels"]]
    for one, two in combinations(places, 2):
        beside = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        above = one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
        assert beside or above


@pytest.mark.parametrize(("where", "expr"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_asks_for_metrics_and_labels_that_exist(where: str, expr: str) -> None:
    assert "$" not in expr, "an unknown variable"
    known = known_series()
    labels = {"le", "component", *SCRAPE_LABELS}
    for selected in selectors(expr):
        if selected.series in recorded():
            continue
        assert selected.series in known, f"no service exports {selected.series}"
        family = known[selected.series]
        labels |= set(family.labels)
        unknown = selected.labels - set(family.labels) - SCRAPE_LABELS
        assert not unknown, f"{selected.series} has no label {unknown}"
    assert grouping_labels(expr) <= labels


@pytest.mark.parametrize(("where", "expr"), QUERIES, ids=[where for where, _ in QUERIES])
def test_counters_are_shown_as_rates_and_quantiles_keep_their_buckets(where: str, expr: str) -> None:
    known = known_series()
    for selected in selectors(expr):
        family = known.get(selected.series)
        if family is None:
            continue
        functions = {name.split()[0] for name in selected.around}
        assert "delta" not in functions or family.type == "gauge"
        assert (family.type in ("counter", "histogram")) == bool(functions & RANGES), (
            f"{selected.series} in {functions}"
        )
        if "histogram_quantile" in functions:
            assert selected.series.endswith("_bucket")
            assert any("le" in re.split(r"[ (),]+", name) for name in selected.around)


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    shown = {selected.series for _, expr in QUERIES for selected in selectors(expr)}
    through_rules = {selected.series for expr in recorded().values() for selected in selectors(filled(expr))}
    hidden = {
        name for name, family in own_metrics().items() if not set(family.series) & (shown | through_rules)
    }  # fmt: skip
    assert hidden == set(NOT_SHOWN)


def test_variables_offer_labels_that_exist() -> None:
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            query, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            (selected,) = selectors(filled(query))
            family = known_series()[selected.series]
            assert label in {*family.labels, *SCRAPE_LABELS}
