"""The real services export what the registry says, well formed, and the dashboards show it."""

import math
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from searchrl.platform.telemetry.metrics_endpoint import component_of
from tests.cluster.static import monitoring_registry
from tests.cluster.static.monitoring_registry import RULES, Selected, panels, recorded, rules, selectors
from tests.fakes.loopback_prometheus import LoopbackPrometheus, running_prometheus, tool
from tests.integration.observed.conftest import Installation
from tools.generate.service_metrics import own_metrics

pytestmark = pytest.mark.slow

SERVICES = ("retriever", "generator", "engine", "searcher", "evaluator", "trainer")
STEPS = 2  # training steps to wait for, so that every metric of a step has been written at least once
SUBSTITUTES = monitoring_registry.SUBSTITUTES | {"$__rate_interval": "20s"}

# Panels or series that stay empty for these services, and the reason.
NOTHING_OF_IT = {
    "jobs: Judge": "the judge has no engine of its own",
    "overview: Failures per second": "no failure",
    "searchrl_retriever_requests_rejected_total": "no overload",
    "searchrl_retriever_redis_duration_seconds_bucket": "no Redis",
    "searchrl_retriever_redis_available": "no Redis",
    "searchrl_generator_engine_up": "no supervised model server",
    "searchrl_generator_engine_attempts_failed_total": "no failure",
    "searchrl_trainer_infra_failures_total": "no failure",
    "searchrl_trainer_tracker_lost_steps_total": "no failure",
    "searchrl_trainer_validation_rollouts_total": "no validation",
    "training: Time of a validation": "no validation",
    "searchrl_evaluator_report_duration_seconds_bucket": "no report is asked for",
}


@pytest.fixture(scope="module")
def worked(installation: Installation) -> Installation:
    """The installation after every service has served requests."""
    run = {"run_id": "metrics", "questions": str(installation.questions_file), "methods": [{"method": "rag"}]}
    assert installation.client.post(f"{installation.http['evaluator']}/v1/runs", json=run).is_success
    wait_for(lambda: sample(installation, "trainer", "searchrl_trainer_step") >= STEPS, "training steps")
    wait_for(lambda: sample(installation, "evaluator", "searchrl_evaluator_runs_total") >= 1, "the evaluation")
    return installation


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)


def scrape(installation: Installation, service: str) -> str:
    answer = installation.client.get(f"{installation.http[service]}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def sample(installation: Installation, service: str, name: str) -> float:
    families = text_string_to_metric_families(scrape(installation, service))
    return sum(one.value for family in families for one in family.samples if one.name == name)


@pytest.mark.parametrize("service", SERVICES)
def test_promtool_finds_no_fault(worked: Installation, service: str) -> None:
    text = scrape(worked, service)
    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_only_registered_metrics_are_exported_with_their_labels(worked: Installation, service: str) -> None:
    known = own_metrics()
    for family in text_string_to_metric_families(scrape(worked, service)):
        if family.name.startswith(("process_", "python_")) or family.name.endswith("_created"):
            continue
        assert family.name in known, f"{family.name} is not in the registry"
        for one in family.samples:
            assert set(one.labels) - {"le"} == set(known[family.name].labels)


def test_each_service_names_its_component(worked: Installation) -> None:
    expected = {"engine": "generator", "searcher": component_of("searchrl.PolicyServer")}
    for service in SERVICES:
        build = f'searchrl_build_info{{component="{expected.get(service, service)}"'
        assert build in scrape(worked, service)


def test_exemplars_lead_from_latency_to_traces(worked: Installation) -> None:
    worked.ask()
    answer = httpx.get(
        f"{worked.http['generator']}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"},
        trust_env=False,
    )  # fmt: skip
    lines = [
        line for line in answer.text.splitlines() if line.startswith("searchrl_request_duration") and "# {" in line
    ]
    assert lines and all("trace_id" in line for line in lines)


@pytest.fixture(scope="module")
def prometheus(worked: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackPrometheus]:
    """Prometheus that has scraped the services every second, long enough for the rates of the panels."""
    targets = [
        {"job_name": name, "static_configs": [{"targets": [worked.http[name].removeprefix("http://")]}]}
        for name in SERVICES
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": targets,
    }
    with running_prometheus(
        tmp_path_factory.mktemp("prometheus"), config, lambda one: len(one.values("up == 1")) == 6
    ) as running:
        end = time.monotonic() + 8
        number = 0
        while time.monotonic() < end:
            worked.ask(method=("rag", "s3", "direct")[number % 3], number=number % len(worked.questions))
            worked.client.post(f"{worked.http['generator']}/v1/judge", json=judgement(worked, number))
            number += 1
        run = {"run_id": "during", "questions": str(worked.questions_file), "methods": [{"method": "rag"}]}
        assert worked.client.post(f"{worked.http['evaluator']}/v1/runs", json=run).is_success
        time.sleep(3)
        yield running


def judgement(installation: Installation, number: int) -> dict[str, object]:
    row = installation.questions[number % len(installation.questions)]
    return {"question": row["question"], "answer": f"nothing {number % 3}", "golden_answers": row["golden_answers"]}


def own_queries() -> list[tuple[str, str]]:
    """Queries of panels that read only our metrics, without those that stay empty here."""
    ours = {series for family in own_metrics().values() for series in family.series} | set(recorded())
    found = []
    for name, panel in panels():
        for target in panel["targets"]:
            expr = target["expr"]
            for variable, value in SUBSTITUTES.items():
                expr = expr.replace(variable, value)
            asked: list[Selected] = selectors(expr)
            about = {f"{name}: {panel['title']}", *(one.series for one in asked)}
            if all(one.series in ours for one in asked) and not about & set(NOTHING_OF_IT):
                found.append((f"{name}: {panel['title']}: {target['refId']}", expr))
    return found


@pytest.mark.parametrize(("where", "expr"), own_queries(), ids=[where for where, _ in own_queries()])
def test_the_panel_shows_the_real_services(prometheus: LoopbackPrometheus, where: str, expr: str) -> None:
    found = prometheus.values(expr)
    assert found, f"no data: {expr}"
    assert not all(math.isnan(value) for value in found), f"only NaN: {expr}"


def test_no_alert_fires_while_nothing_fails(prometheus: LoopbackPrometheus) -> None:
    groups = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    evaluated = [rule for group in groups for rule in group["rules"]]
    assert len(evaluated) == len(list(rules()))
    assert [rule["name"] for rule in evaluated if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in evaluated if rule.get("state") == "firing"] == []
