"""The trainer's metrics between and after the steps of a run."""

import math
import time
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from services.trainer.algorithms.base import CriticReport, UpdateReport
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.metrics import LINE_GAUGES, VALIDATION_GAUGES, TrainerMetrics
from services.trainer.runs.step_summary import summarize_update

READ_AT_SCRAPE = ("paused", "groups_in_flight", "groups_waiting", "circuit_breaker_open")


def build() -> tuple[CollectorRegistry, TrainerMetrics, SimpleNamespace]:
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)
    run = SimpleNamespace(paused=False, in_flight=3, ready=2, is_circuit_open=False)
    metrics.watch(
        70,
        is_paused=lambda: run.paused,
        groups_in_flight=lambda: run.in_flight,
        groups_waiting=lambda: run.ready,
        is_circuit_open=lambda: run.is_circuit_open,
    )
    return registry, metrics, run


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(f"searchrl_trainer_{name}", labels)
    assert found is not None, name
    return found


def test_before_the_first_step_the_start_counts_as_the_last_progress() -> None:
    registry, *_ = build()
    for name in ("last_step_timestamp_seconds", "last_checkpoint_timestamp_seconds"):
        assert abs(value(registry, name) - time.time()) < 5
    assert value(registry, "planned_steps") == 70


def test_state_queue_and_circuit_breaker_are_read_at_every_scrape() -> None:
    registry, _, run = build()
    assert [value(registry, name) for name in READ_AT_SCRAPE] == [
        0, 3, 2, 0,
    ]  # fmt: skip
    run.paused, run.in_flight, run.ready, run.is_circuit_open = True, 0, 5, True
    assert [value(registry, name) for name in READ_AT_SCRAPE] == [
        1, 0, 5, 1,
    ]  # fmt: skip


def test_a_step_sets_its_gauges_and_counts_skipped_updates() -> None:
    registry, metrics, *_ = build()
    phase_seconds = {"update": 1.5}
    line = {"step": 4, "reward": 0.5, "group_reward_std": 0.2, "seconds": 7.0, "time": 123.0, "skipped_steps": 2.0}
    metrics.record_step({**line, "loss": math.nan, "fingerprint": "abc"}, phase_seconds)
    metrics.record_step({**line, "skipped_steps": 0.0}, phase_seconds)
    assert value(registry, "step_reward") == 0.5
    assert value(registry, "group_reward_std") == 0.2
    assert value(registry, "last_step_duration_seconds") == 7
    assert value(registry, "last_step_timestamp_seconds") == 123
    assert value(registry, "step_phase_seconds", phase="update") == 1.5
    assert value(registry, "nonfinite_updates_total", model="policy") == 2
    assert math.isnan(value(registry, "loss"))


def test_the_critic_of_ppo_is_visible_with_its_skipped_steps() -> None:
    registry, metrics, *_ = build()
    optim = (OptimReport(1, 3.0, 1e-5), OptimReport(2, math.nan, 1e-5, skipped=True), OptimReport(2, 0.5, 1e-5))
    critic = CriticReport(LossReport(0.25, {"value_tokens": 2.0, "value": 1.0}), 0.75, optim)
    metrics.record_step(summarize_update(UpdateReport(LossReport(), (), critic)), {})
    assert value(registry, "value_loss") == 0.25
    assert value(registry, "value_explained_variance_ratio") == 0.75
    assert value(registry, "nonfinite_updates_total", model="critic") == 1
    assert value(registry, "nonfinite_updates_total", model="policy") == 0
    assert value(registry, "value_grad_norm") == 3


def test_a_resumed_run_shows_the_step_it_resumed_from() -> None:
    registry, metrics, *_ = build()
    metrics.record_start(12)
    assert (value(registry, "resumed_step"), value(registry, "step")) == (12, 12)


def test_a_checkpoint_sets_its_time() -> None:
    registry, metrics, *_ = build()
    metrics.checkpoint_time.set(0)
    metrics.record_checkpoint(1.25, 8.5)
    assert value(registry, "checkpoint_seconds", part="blocking") == 1.25
    assert value(registry, "checkpoint_seconds", part="background") == 8.5
    assert time.time() - value(registry, "last_checkpoint_timestamp_seconds") < 5


def test_every_gauge_of_a_line_has_its_own_name() -> None:
    rows = [*LINE_GAUGES.values(), *VALIDATION_GAUGES.values()]
    names = [family.name for row in rows for family in row.build(CollectorRegistry()).collect()]
    assert len(set(names)) == len(names)
