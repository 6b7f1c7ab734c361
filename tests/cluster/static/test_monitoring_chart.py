"""The chart wraps rules and dashboards unchanged, and only if they are enabled."""

import json
import re

import pytest
import yaml

from tests.cluster.static.chart_rendering import of_kind, render
from tests.cluster.static.monitoring_registry import DASHBOARDS, RULES, alerts

ON = ("monitoring.rules.enabled=true", "monitoring.dashboards.enabled=true")
SITE = "https://wiki.example/runbooks/{area}/"
GIT_SERVER = "https://git.example/team/searchrl/blob/main/docs/runbooks/{area}.md"


@pytest.mark.parametrize("url", [SITE, GIT_SERVER, "docs/runbooks/{area}.md"])
def test_a_prometheus_rule_is_its_file_with_links_to_your_runbooks(url: str) -> None:
    manifests = of_kind(render("dev-cpu", *ON, f"monitoring.rules.runbookUrl={url}"), "PrometheusRule")
    rendered = [json.dumps(one["spec"], sort_keys=True) for one in manifests]
    expected = [
        re.sub(r"docs/runbooks/([a-z]+)\.md", lambda found: url.replace("{area}", found[1]), path.read_text())
        for path in RULES
    ]
    assert sorted(rendered) == sorted(json.dumps(yaml.safe_load(text), sort_keys=True) for text in expected)
    before, _, after = url.partition("{area}")
    assert sum(len(re.findall(f"{re.escape(before)}[a-z]+{re.escape(after)}#searchrl", text)) for text in rendered) == (
        len(alerts())
    )


@pytest.mark.parametrize("url", ["https://wiki.example/runbooks", "https://wiki.example/{area}/#top", ""])
def test_an_address_of_runbooks_without_the_page_is_refused(url: str) -> None:
    with pytest.raises(AssertionError, match="runbookUrl"):
        render("dev-cpu", *ON, f"monitoring.rules.runbookUrl={url}")


def test_a_dashboard_is_in_a_config_map_as_it_is() -> None:
    maps = of_kind(render("dev-cpu", *ON), "ConfigMap")
    found = {name: text for one in maps for name, text in one["data"].items() if name.endswith(".json")}
    for path in DASHBOARDS:
        assert json.loads(found[path.name]) == json.loads(path.read_text())


def test_without_the_switch_there_are_no_rules_and_dashboards() -> None:
    manifests = render("dev-cpu")
    assert not of_kind(manifests, "PrometheusRule")
    assert not [name for one in of_kind(manifests, "ConfigMap") for name in one["data"] if name.endswith(".json")]
