"""Limits how many requests of one kind run at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from searchrl.errors import Overloaded
from services.generator.metrics import GeneratorMetrics


class Admission:
    """Admits a bounded number of requests of one kind at once; further ones are refused, not queued.

    It needs no lock: all requests run in one event loop, and nothing is awaited between the check and the count.
    """

    def __init__(self, kind: str, max_in_flight: int, metrics: GeneratorMetrics) -> None:
        self._kind = kind
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._gauge = metrics.in_flight.labels(kind)
        metrics.slots.labels(kind).set(max_in_flight)
        self._rejected = metrics.rejected.labels(kind)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot.

        Raises:
            Overloaded: all are taken; the caller may retry.
        """
        if self._in_flight >= self._max_in_flight:
            self._rejected.inc()
            raise Overloaded(f"all {self._max_in_flight} slots for {self._kind} are taken")
        self._in_flight += 1
        self._gauge.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._gauge.set(self._in_flight)
