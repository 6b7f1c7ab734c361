"""README, schema, notes and the chart's scripts agree with the values and templates."""

import ast
import json
import re
import subprocess

import pytest

from tests.cluster.static.chart_rendering import (
    CHART,
    NAMESPACE,
    PRESETS,
    RELEASE,
    TOGGLES,
    helm,
    named,
    of_kind,
    render,
    values_of,
)


def notes(preset: str, *sets: str) -> str:
    arguments = ["install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client"]
    arguments += values_of(preset)
    for assignment in sets:
        arguments += ["--set", assignment]
    done = helm(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


def commands(text: str) -> list[str]:
    return re.findall(r"^  \$ (.+)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if not preset.startswith("gpu-prod")])
def test_the_notes_commands_are_shell_and_name_what_exists(preset: str) -> None:
    documents = render(preset)
    found = commands(notes(preset))
    assert len(found) >= 6
    for command in found:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command
        for service in re.findall(r"service/(\S+)", command):
            named(documents, "Service", service)
        for body in re.findall(r"-d '(.*)'", command):
            assert json.loads(body.replace("'\\''", "'"))["model"].startswith("searchrl/")
    assert all(f"--namespace {NAMESPACE}" in command for command in found if command.startswith(("kubectl", "helm")))


def test_the_notes_warn_if_authentication_or_network_policies_are_off() -> None:
    text = notes("dev-cpu", "networkPolicy.enabled=false")
    assert "auth.mode is off" in text and "networkPolicy.enabled is false" in text
    assert "WARNING" not in notes("gpu-single")


def test_every_script_of_the_chart_is_mounted_unchanged() -> None:
    files = {path.name: path.read_text() for path in (CHART / "files").iterdir() if path.is_file()}
    mounted = named(render("dev-cpu"), "ConfigMap", f"{RELEASE}-scripts")["data"]
    assert {name: text.strip() for name, text in mounted.items()} == {n: text.strip() for n, text in files.items()}
    for name, text in files.items():
        if name.endswith(".py"):
            ast.parse(text)
        else:
            assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0


def test_every_dashboard_and_every_rule_file_is_wrapped_as_it_is() -> None:
    documents = render("dev-cpu", *TOGGLES["monitoring"])
    dashboards = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    wrapped = {
        name: json.loads(text)
        for document in of_kind(documents, "ConfigMap")
        if document["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in document["data"].items()
    }
    assert wrapped == dashboards
    import yaml

    rules = [yaml.safe_load(path.read_text()) for path in sorted((CHART / "rules").glob("*.yaml"))]
    assert [document["spec"] for document in of_kind(documents, "PrometheusRule")] == rules


def test_no_template_is_longer_than_400_lines() -> None:
    long = [path.name for path in CHART.rglob("templates/**/*") if path.is_file() and _lines(path) >= 400]
    assert not long


def _lines(path: object) -> int:
    return len(path.read_text().splitlines())  # pyright: ignore[reportAttributeAccessIssue]
