"""Alerts fire when they should and only then, and each has a runbook that says what to do."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.static.monitoring_registry import (
    HERE,
    RULES,
    RUNBOOKS,
    SCRAPE_LABELS,
    alerts,
    by_series,
    external_metrics,
    grouping_labels,
    recorded,
    rules,
    selectors,
)
from tests.fakes.loopback_prometheus import tool
from tools.generate.service_metrics import own_metrics

CASES: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "alert_cases.yaml").read_text())
PARTS = ("Meaning", "Impact", "Diagnose", "Fix")
PREFIX = "docs/runbooks/"


def unit_test(alert: str, series: dict[str, str], at: str, expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": CASES[alert].get("every", "1m"),
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }


def minutes(duration: str) -> int:
    return int(duration[:-1]) * {"m": 1, "h": 60}[duration[-1]]


def run_promtool(folder: Path, alert: str, tests: list[dict[str, Any]]) -> None:
    """Run cases with only the rule files that the alert needs: promtool evaluates every rule at every step."""
    files = [str(path) for path in RULES if f"alert: {alert}\n" in path.read_text() or path.stem == "services"]
    unit = folder / "unit.yaml"
    every = CASES[alert].get("every", "1m")
    groups = [group["name"] for file in files for group in yaml.safe_load(Path(file).read_text())["groups"]]
    # Groups whose series other rules read come first.
    order = sorted(groups, key=lambda name: not name.endswith(("-recording", "-instances")))
    content = {"rule_files": files, "evaluation_interval": every, "group_eval_order": order, "tests": tests}
    unit.write_text(yaml.safe_dump(content))
    done = subprocess.run([tool("promtool"), "test", "rules", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    command = [tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == set(alerts())


@pytest.mark.slow
@pytest.mark.parametrize("alert", CASES)
def test_the_alert_fires_after_its_time_and_only_then(alert: str, tmp_path: Path) -> None:
    case, rule = CASES[alert], alerts()[alert]
    filled = {name: case[name] for name in ("summary", "description") if name in case}
    expected = [{"exp_labels": case["labels"], "exp_annotations": {**rule["annotations"], **filled}}]
    fires = unit_test(alert, case["series"], case["fires"], expected)
    is_well = unit_test(alert, case["series"] | case["healthy"], case["fires"], [])
    waits = unit_test(alert, case["series"], f"{minutes(rule.get('for', '0m')) - 1}m", [])
    run_promtool(tmp_path, alert, [fires, is_well, waits] if "for" in rule else [fires, is_well])


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_has_severity_texts_and_a_runbook(alert: str) -> None:
    rule = alerts()[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].removeprefix(PREFIX).partition("#")
    assert rule["annotations"]["runbook_url"].startswith(PREFIX) and anchor == alert.lower()
    text = runbook_sections(RUNBOOKS / page)[alert]
    places = [text.find(f"**{part}**:") for part in PARTS]
    assert -1 not in places and places == sorted(places), f"{page}, {alert}: needs {', '.join(PARTS)} in this order"


def runbook_sections(page: Path) -> dict[str, str]:
    """The text of each second-level heading of a runbook page."""
    headings_and_texts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(headings_and_texts[::2], headings_and_texts[1::2], strict=True))


def test_there_is_no_runbook_without_an_alert() -> None:
    pages = set(RUNBOOKS.glob("*.md")) - {RUNBOOKS / "README.md"}
    assert sorted(name for page in pages for name in runbook_sections(page)) == sorted(alerts())


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_name_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = by_series(own_metrics() | external_metrics())
    made = re.findall(r'"(\w+)",\s*"(?:\$1|-)"', rule["expr"])  # labels that label_replace and label_join create
    labels = {*SCRAPE_LABELS, *made, "le", "component"}
    for selected in selectors(rule["expr"]):
        if selected.series in recorded():
            continue
        assert selected.series in known, f"no service exports {selected.series}"
        family = known[selected.series]
        labels |= set(family.labels)
        unknown = selected.labels - set(family.labels) - SCRAPE_LABELS - {"le"}
        assert not unknown, f"{selected.series} has no label {unknown}"
    assert grouping_labels(rule["expr"]) <= labels
