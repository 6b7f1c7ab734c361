"""Lets a class declare its Prometheus metrics as a table: a row of name, text and labels for each."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class MetricRow(Generic[Metric]):
    """A row of a ``MetricTable``: what an instance of the table needs to build one metric."""

    def __init__(
        self, build: Callable[..., Metric], name: str, text: str, labels: Sequence[str], **options: Any
    ) -> None:
        self._arguments = (name, text, labels)
        self._options = options
        self._build = build

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Metric: ...

    def __get__(self, instance: object | None, owner: type) -> Self | Metric:
        # Python finds the attribute of an instance first, so this runs for the class alone, and for a table whose
        # ``__init__`` has not been called.
        if instance is None:
            return self
        raise AttributeError(f"{owner.__name__} has not built its metrics")

    def build(self, registry: CollectorRegistry) -> Metric:
        """Build the metric and register it."""
        return self._build(*self._arguments, registry=registry, **self._options)


def counter(name: str, text: str, *labels: str) -> MetricRow[Counter]:
    """Declare a counter."""
    return MetricRow(Counter, name, text, labels)


def gauge(name: str, text: str, *labels: str) -> MetricRow[Gauge]:
    """Declare a gauge."""
    return MetricRow(Gauge, name, text, labels)


def histogram(
    name: str, text: str, *labels: str, buckets: Sequence[float] = Histogram.DEFAULT_BUCKETS
) -> MetricRow[Histogram]:
    """Declare a histogram."""
    return MetricRow(Histogram, name, text, labels, buckets=buckets)


class MetricTable:
    """Base of a class whose attributes are rows; an instance has the metrics themselves, in a registry of its own.

    Built once in the wiring of a service, with a private registry in tests.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        for name, row in vars(type(self)).items():
            if isinstance(row, MetricRow):
                setattr(self, name, row.build(registry))
