"""A table of metrics: each instance has its own metrics, in its own registry."""

import pytest
from prometheus_client import CollectorRegistry

from searchrl.platform.telemetry.metric_table import MetricTable, counter, gauge, histogram


class Example(MetricTable):
    calls = counter("example_calls_total", "Calls, by kind.", "kind")
    waiting = gauge("example_waiting", "Calls that wait.")
    seconds = histogram("example_seconds", "Time of a call.", buckets=(0.1, 1.0))


def test_instances_count_apart_each_in_its_registry() -> None:
    one, other = Example(CollectorRegistry()), Example(CollectorRegistry())
    one.calls.labels("fast").inc()
    one.waiting.set(3)
    one.seconds.observe(0.5)
    assert one.registry.get_sample_value("example_calls_total", {"kind": "fast"}) == 1
    assert one.registry.get_sample_value("example_waiting") == 3
    assert one.registry.get_sample_value("example_seconds_bucket", {"le": "0.1"}) == 0
    assert one.registry.get_sample_value("example_seconds_bucket", {"le": "1.0"}) == 1
    assert other.registry.get_sample_value("example_calls_total", {"kind": "fast"}) is None
    assert other.registry.get_sample_value("example_waiting") == 0


def test_a_table_that_is_not_built_has_no_metrics() -> None:
    with pytest.raises(AttributeError, match="Example has not built its metrics"):
        _ = Example.__new__(Example).waiting
