"""The chart wraps rules and dashboards unchanged, and only if they are enabled."""

import json

import yaml

from tests.cluster.static.chart_rendering import of_kind, render
from tests.cluster.static.monitoring_registry import DASHBOARDS, RULES, alerts

ON = ("monitoring.rules.enabled=true", "monitoring.dashboards.enabled=true")
BASE = "https://wiki.example/runbooks"


def test_a_prometheus_rule_is_its_file_with_links_to_your_runbooks() -> None:
    manifests = of_kind(render("dev-cpu", *ON, f"monitoring.rules.runbookUrl={BASE}/"), "PrometheusRule")
    rendered = [json.dumps(one["spec"], sort_keys=True) for one in manifests]
    expected = [path.read_text().replace("docs/runbooks/", f"{BASE}/") for path in RULES]
    assert sorted(rendered) == sorted(json.dumps(yaml.safe_load(text), sort_keys=True) for text in expected)
    assert sum(text.count(BASE) for text in rendered) == len(alerts())


def test_a_dashboard_is_in_a_config_map_as_it_is() -> None:
    maps = of_kind(render("dev-cpu", *ON), "ConfigMap")
    found = {name: text for one in maps for name, text in one["data"].items() if name.endswith(".json")}
    for path in DASHBOARDS:
        assert json.loads(found[path.name]) == json.loads(path.read_text())


def test_without_the_switch_there_are_none() -> None:
    manifests = render("dev-cpu")
    assert not of_kind(manifests, "PrometheusRule")
    assert not [name for one in of_kind(manifests, "ConfigMap") for name in one["data"] if name.endswith(".json")]
