"""Prometheus scrapes everything that the chart's PodMonitors select, and dashboards and rules get data from it."""

import math
import time
from collections.abc import Iterator

import pytest

from searchrl.cli.main import run as searchrl
from tests.cluster.live.cluster_objects import Json
from tests.cluster.live.conftest import forwarded
from tests.cluster.live.observed.conftest import QUESTION, Observed
from tests.cluster.live.observed.scraping import prometheus_of
from tests.cluster.live.releases import await_that, pods
from tests.cluster.static import monitoring_registry
from tests.cluster.static.monitoring_registry import panels, recorded, rules, selectors
from tests.fakes.loopback_prometheus import LoopbackPrometheus
from tools.generate.service_metrics import own_metrics

pytestmark = pytest.mark.timeout(600)

RUN = "watched"
COMPONENTS = ("retriever", "generator", "evaluator", "engine-generator", "engine-searcher", "trainer")
SUBSTITUTES = monitoring_registry.SUBSTITUTES | {"$__rate_interval": "1m"}
# Alerts on durations, which a busy machine makes pending: latency objectives, and Redis with its limit of 50 ms.
ABOUT_TIME = {
    "SearchRLLatencyBudgetBurn",
    "SearchRLLatencyBudgetBurnFast",
    "SearchRLLatencyBudgetBurnSlow",
    "SearchRLRedisDown",
}
# Metrics of exporters that serve a complete cluster and are not part of the chart.
NOT_OURS = ("DCGM_", "kube_", "kubelet_", "kuberay_", "kueue_")
# Panels or series that stay empty for this release, and the reason.
NOTHING_OF_IT = {
    "jobs: Judge": "the judge has no engine of its own",
    "overview: Failures per second": "no failure",
    "overview: Firing alerts": "no alert",
    "searchrl_retriever_requests_rejected_total": "no overload",
    "searchrl_generator_requests_rejected_total": "no overload",
    "searchrl_generator_engine_up": "no supervised model server: vLLM is a pod of its own",
    "searchrl_generator_engine_attempts_failed_total": "no failure",
    "searchrl_trainer_infra_failures_total": "no failure",
    "searchrl_trainer_tracker_lost_steps_total": "no failure",
    "searchrl_trainer_validation_rollouts_total": "no validation",
    "training: Time of a validation": "no validation",
    "training: Running and waiting turns": "the job's rollouts need no vLLM",
    "training: KV cache in use": "the job's rollouts need no vLLM",
    "training: Tokens per second of vLLM": "the job's rollouts need no vLLM",
    "training: Preemptions and prefix cache of vLLM": "the job's rollouts need no vLLM",
    "searchrl_evaluator_report_duration_seconds_bucket": "no report is asked for",
}


@pytest.fixture(scope="module")
def prometheus(observed_release: Observed) -> Iterator[LoopbackPrometheus]:
    """Prometheus that watches a training job, questions, verdicts and an evaluation."""
    release = observed_release.release
    where = ["-n", release.namespace]
    assert searchrl(["submit", "train", "--run-id", RUN, "--release", release.name,
                     "--auth-secret", "observed-dev-keys", "--cpu", "50m", "--memory", "2Gi",
                     "--set", "steps=1000", "--set", "rollouts.groups_per_step=2", "--set", "rollouts.group_size=4",
                     "--set", "checkpoints.every=2", *where]) == 0  # fmt: skip
    try:
        await_that(lambda: is_training(observed_release), 180, "the training job's pod runs")
        with prometheus_of(release, observed_release.outside) as watching:
            evaluate(observed_release)
            use(observed_release, 8)
            await_that(lambda: watching.values("searchrl_trainer_step >= 4"), 180, "four training steps are seen")
            finished = 'searchrl_evaluator_runs_total{state="finished"} >= 1'
            await_that(lambda: watching.values(finished), 120, "the evaluation is seen")
            evaluate(observed_release)
            deadline = time.monotonic() + 30
            # A query that is still empty after this wait is reported by its own test.
            while empty(watching) and time.monotonic() < deadline:
                time.sleep(1)
            yield watching
    finally:
        searchrl(["runs", "stop", RUN, "--delete", *where])


def is_training(observed: Observed) -> bool:
    return any(pod["status"]["phase"] == "Running" for pod in pods(observed.release, "trainer"))


def evaluate(observed: Observed) -> None:
    """Start one evaluation through the evaluator's API."""
    run = {"run_id": f"run-{time.monotonic_ns()}", "questions": "/data/questions/small-world/test.jsonl"}
    run |= {"methods": [{"method": "rag"}], "limit": 4}
    with forwarded(observed.release, "observed-evaluator", 8080) as port:
        answer = observed.http.post(f"http://127.0.0.1:{port}/v1/runs", json=run)
    assert answer.is_success, answer.text


def use(observed: Observed, seconds: float) -> None:
    """Ask questions by every method, and request verdicts."""
    question = {"id": "q", "text": QUESTION, "filters": {"world": "w002"}, "golden_answers": ["Helga Tanaka"]}
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        observed.ask(("rag", "s3", "direct")[number % 3], question)
        verdict = {"question": QUESTION, "answer": f"nothing {number}", "golden_answers": ["Helga Tanaka"]}
        assert observed.http.post("/v1/judge", json=verdict).is_success
        number += 1


def is_about_this(about: set[str]) -> bool:
    return not about & set(NOTHING_OF_IT) and not any(name.startswith(NOT_OURS) for name in about)


def queries() -> list[tuple[str, str]]:
    """Queries of the panels that are about this release."""
    found = []
    for name, panel in panels():
        for target in panel["targets"]:
            expr = target["expr"]
            for variable, value in SUBSTITUTES.items():
                expr = expr.replace(variable, value)
            if is_about_this({f"{name}: {panel['title']}", *(one.series for one in selectors(expr))}):
                found.append((f"{name}: {panel['title']}: {target['refId']}", expr))
    return found


QUERIES = queries()


def is_empty(prometheus: LoopbackPrometheus, expr: str) -> bool:
    return all(math.isnan(value) for value in prometheus.values(expr))


def empty(prometheus: LoopbackPrometheus) -> list[str]:
    """The queries that return nothing."""
    return [where for where, expr in QUERIES if is_empty(prometheus, expr)]


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_scraped(prometheus: LoopbackPrometheus, component: str) -> None:
    assert prometheus.values(f'up{{app_kubernetes_io_component="{component}"}}') == [1]


def test_every_pod_with_metrics_is_one_target_and_nothing_else_is(
    observed_release: Observed, prometheus: LoopbackPrometheus
) -> None:
    """There is one target for each pod that serves metrics, and none for jobs."""
    targets = prometheus.client.get("/api/v1/targets").json()["data"]["activeTargets"]
    assert {target["health"] for target in targets} == {"up"}, [target["lastError"] for target in targets]
    running = {pod["metadata"]["name"] for pod in pods(observed_release.release) if pod["status"]["phase"] == "Running"}
    scraped = {target["labels"]["pod"] for target in targets}
    assert {name for name in running if "-redis-" not in name} == scraped


@pytest.mark.parametrize(("where", "expr"), QUERIES, ids=[where for where, _ in QUERIES])
def test_the_panel_shows_the_release(prometheus: LoopbackPrometheus, where: str, expr: str) -> None:
    assert not is_empty(prometheus, expr), f"no data: {expr}"


def test_most_panels_are_about_the_release() -> None:
    """The list of empty panels does not grow until the tests show nothing."""
    every = sum(len(panel["targets"]) for _, panel in panels())
    assert len(QUERIES) > 0.75 * every, f"{len(QUERIES)} of {every}"


def own_recorded() -> list[str]:
    """Recording rules built from what this release exports, directly or through other rules."""
    exported = {series for family in own_metrics().values() for series in family.series}
    known: set[str] = set()
    for _ in recorded():
        known |= {
            name
            for name, expr in recorded().items()
            if all(one.series in exported | known for one in selectors(expr))
            and is_about_this({one.series for one in selectors(expr)})
        }
    return sorted(known)


@pytest.mark.parametrize("name", own_recorded())
def test_the_recording_rule_has_values(prometheus: LoopbackPrometheus, name: str) -> None:
    assert not is_empty(prometheus, name), recorded()[name]


def loaded_rules(prometheus: LoopbackPrometheus) -> list[Json]:
    groups = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def stirring(prometheus: LoopbackPrometheus) -> dict[str, str]:
    """Alerts that fire or are pending; of those on durations only the firing ones."""
    states = {rule["name"]: rule["state"] for rule in loaded_rules(prometheus) if rule["type"] == "alerting"}
    return {
        name: state
        for name, state in states.items()
        if state == "firing" or (state == "pending" and name not in ABOUT_TIME)
    }


def test_every_rule_is_loaded_and_no_alert_fires(prometheus: LoopbackPrometheus) -> None:
    loaded = loaded_rules(prometheus)
    assert len(loaded) == len(list(rules()))
    assert [rule["name"] for rule in loaded if rule["health"] != "ok"] == []
    deadline = time.monotonic() + 60
    while stirring(prometheus) and time.monotonic() < deadline:  # a busy machine sometimes answers a scrape late
        time.sleep(1)
    assert stirring(prometheus) == {}


def test_vllm_is_watched_from_inside(prometheus: LoopbackPrometheus) -> None:
    assert prometheus.values('sum(vllm:generation_tokens_total{model_name="tiny"})')[0] > 0
    assert prometheus.values('vllm:kv_cache_usage_perc{model_name="tiny"}')
