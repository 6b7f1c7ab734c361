"""Counts the requests that every service serves, and renders its metrics for Prometheus."""

import re
from contextlib import AbstractContextManager
from typing import ClassVar
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

import searchrl
from searchrl.platform.health import Health
from searchrl.platform.telemetry.metric_table import MetricTable, counter, gauge, histogram
from searchrl.platform.telemetry.tracing import trace_exemplar

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds, shared by all services: one search at the low end, an answer of many model calls at the high end.

Neighbors differ by a factor of 2 to 3, which bounds the error of a quantile; each bucket is one series per method.
"""


def component_of(full_name: str) -> str:
    """Return the ``component`` label of a service by its proto name: ``searchrl.PolicyServer`` is ``policy-server``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", full_name.rpartition(".")[2]).lower()


ABANDONED = "abandoned"  # outcome of a request whose caller disconnected before its answer was complete


class RequestMetrics(MetricTable):
    """Requests by transport, method and outcome: ``ok``, an ``ErrorKind``, or ``abandoned`` if the caller disconnected.

    Both transports of a service report to the same instance (``of``), because a registry accepts each metric once.
    """

    _by_registry: ClassVar["WeakKeyDictionary[CollectorRegistry, RequestMetrics]"] = WeakKeyDictionary()

    _requests = counter(
        "searchrl_requests_total",
        "Requests served, by outcome (ok, the kind of the error, or abandoned).",
        "component",
        "transport",
        "method",
        "outcome",
    )
    _seconds = histogram(
        "searchrl_request_duration_seconds",
        "Time from the first byte of a request to the last of its answer.",
        "component",
        "transport",
        "method",
        buckets=LATENCY_BUCKETS,
    )
    _in_flight = gauge(
        "searchrl_requests_in_flight", "Requests being served, streams included.", "component", "transport"
    )
    _ready = gauge("searchrl_ready", "1 while the service takes traffic, else 0.", "component")
    _build_info = gauge("searchrl_build_info", "1; the version in service.", "component", "version")

    def __init__(self, registry: CollectorRegistry, component: str) -> None:
        super().__init__(registry)
        self._component = component
        self._build_info.labels(component, searchrl.__version__).set(1)

    @classmethod
    def of(cls, registry: CollectorRegistry, component: str) -> "RequestMetrics":
        """Return the registry's only instance, shared by both transports; creates it on first use."""
        # Called while the servers are built, in one thread, so there is no race for the first call.
        if registry not in cls._by_registry:
            cls._by_registry[registry] = cls(registry, component)
        return cls._by_registry[registry]

    def follow(self, health: Health) -> None:
        """Export readiness; it is read from ``health`` at each scrape."""
        ready = self._ready.labels(self._component)
        # Read at the scrape, not written at each change: the exported value cannot be older than the scrape.
        ready.set_function(lambda: float(health.ready))

    def in_flight(self, transport: str) -> AbstractContextManager[None]:
        """Count a request while the block runs."""
        return self._in_flight.labels(self._component, transport).track_inprogress()

    def record(self, transport: str, method: str, outcome: str, seconds: float) -> None:
        """Count one finished request; call it inside the request's span, which becomes the exemplar."""
        self._requests.labels(self._component, transport, method, outcome).inc()
        # The histogram has no label for the outcome: with ten outcomes it would have ten times 15 buckets for each
        # method.
        self._seconds.labels(self._component, transport, method).observe(seconds, trace_exemplar())


def scrape(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Render the metrics in the format that ``accept`` asks for; exemplars are in OpenMetrics only.

    Returns:
        The content and its content type.
    """
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
