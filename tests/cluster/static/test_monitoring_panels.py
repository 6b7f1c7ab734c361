"""Every panel shows data: a real Prometheus answers every query from backfilled series of every metric."""

import math
import time
from collections.abc import Iterator

import pytest

from tests.cluster.static.monitoring_registry import RULES, panel_queries, recorded, rules
from tests.cluster.static.monitoring_samples import openmetrics
from tests.fakes.loopback_prometheus import LoopbackPrometheus, running_prometheus

QUERIES = panel_queries()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackPrometheus]:
    """Prometheus with three hours of backfilled samples and the chart's rules; it scrapes nothing."""
    config = {"global": {"evaluation_interval": "1s"}, "rule_files": [str(path) for path in RULES]}
    samples = openmetrics(time.time(), hours=3, step=60)
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), config, have_rules_run, samples) as running:
        yield running


def have_rules_run(prometheus: LoopbackPrometheus) -> bool:
    return all(prometheus.values(name) for name in recorded())


@pytest.mark.parametrize(("where", "expr"), QUERIES, ids=[where for where, _ in QUERIES])
def test_the_query_returns_data(prometheus: LoopbackPrometheus, where: str, expr: str) -> None:
    found = prometheus.values(expr)
    assert found, f"no data: {expr}"
    assert not all(math.isnan(value) for value in found), f"only NaN: {expr}"


@pytest.mark.parametrize("name", sorted(recorded()))
def test_the_recording_rule_has_values(prometheus: LoopbackPrometheus, name: str) -> None:
    assert any(not math.isnan(value) for value in prometheus.values(name))


def test_prometheus_has_loaded_and_evaluated_every_rule(prometheus: LoopbackPrometheus) -> None:
    groups = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert states == {rule.get("alert") or rule["record"]: "ok" for rule in rules()}
