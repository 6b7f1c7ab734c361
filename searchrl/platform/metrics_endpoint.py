"""What does every service count about its requests?"""

from typing import ClassVar
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RequestMetrics:
    """Requests by transport, method and outcome; the outcome is ``ok`` or an ``ErrorKind``."""

    _by_registry: ClassVar["WeakKeyDictionary[CollectorRegistry, RequestMetrics]"] = WeakKeyDictionary()

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "searchrl_requests_total",
            "Requests served, by outcome.",
            ["transport", "method", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "searchrl_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ["transport", "method"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )

    @classmethod
    def of(cls, registry: CollectorRegistry) -> "RequestMetrics":
        """The one instance of a registry, shared by both transports."""
        if registry not in cls._by_registry:
            cls._by_registry[registry] = cls(registry)
        return cls._by_registry[registry]

    def record(self, transport: str, method: str, outcome: str, seconds: float) -> None:
        self.requests.labels(transport, method, outcome).inc()
        self.seconds.labels(transport, method).observe(seconds)
