"""Provides the circuit breaker that pauses the dispatch of rollouts while the services they need fail.

Its states are those of every circuit breaker: closed (rollouts start), open (dispatch is paused), and half-open while a
probe is under way, which closes it if the services answer. All of it runs in the event loop, so no lock is needed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from pydantic import Field, PositiveFloat, PositiveInt

from searchrl.errors import OUTAGE_KINDS, PERMANENT_KINDS, ServiceError
from searchrl.platform.retry import retry_every
from searchrl.platform.settings import Section
from services.trainer.rollouts.refusals import raise_if_run_ends

logger = logging.getLogger(__name__)


class CircuitBreakerSettings(Section):
    """When failures of infrastructure open the circuit, and how often recovery is probed."""

    # With these defaults the seventh failure among the last 32 rollouts pauses dispatch. A lower share pauses it for
    # single failures, a higher one loses more rollouts first.
    failure_ratio: float = Field(default=0.2, gt=0, le=1, description="Share of failed rollouts that pauses dispatch.")
    window: PositiveInt = Field(default=32, description="Number of last rollouts over which the share is taken.")
    # A probe is one search and, if the reward needs a generator, one answer and one verdict. At 2 s an outage of an
    # hour costs at most 1800 of each; a longer pause keeps rollouts waiting after the services are back.
    probe_seconds: PositiveFloat = Field(default=2.0, description="Time between probes while paused.")


class CircuitBreaker:
    """Opens when too many of the last rollouts failed by infrastructure, and closes when a probe succeeds.

    ``probe`` uses the services that rollouts need and raises ``ServiceError`` while they are unavailable. A probe that
    is refused whatever its question, or raises any other error, ends the run through ``on_error``; if only its question
    is refused, the services answer again.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], settings: CircuitBreakerSettings) -> None:
        self._probe = probe
        self._settings = settings
        self._recent: deque[bool] = deque(maxlen=settings.window)
        # Two events, because a task can wait only until an event is set: the dispatcher waits for the circuit to close,
        # the training loop for it to open. Exactly one of them is set, except between two lines of one method.
        self._closed = asyncio.Event()
        self._closed.set()
        self._opened = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self.outages = 0
        self.reason = ""
        self.on_error: Callable[[BaseException], None] = lambda _error: None

    @property
    def is_open(self) -> bool:
        """Whether dispatch is paused."""
        return self._opened.is_set()

    def record(self, failed: bool, reason: str = "") -> None:
        """Count one finished rollout, or one attempt at a reward; opens the circuit if too many failed."""
        self._recent.append(failed)
        if failed:
            self.reason = reason or self.reason
        # A window that is not full never opens the circuit: the first failure of a run would be a share of 1. An outage
        # in which a run starts is noticed all the same: the orchestrator calls ``open`` when a group is left
        # underfilled.
        full = len(self._recent) == self._recent.maxlen
        if full and sum(self._recent) > self._settings.failure_ratio * len(self._recent):
            self.open()

    async def wait_until_closed(self) -> None:
        """Wait until rollouts may start; return at once if they may now."""
        await self._closed.wait()

    async def wait_until_open(self) -> None:
        """Wait until dispatch is paused; return at once if it is paused now."""
        await self._opened.wait()

    async def stop(self) -> None:
        """End a running probe."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    def open(self, reason: str = "") -> None:
        """Pause dispatch until a probe succeeds; has no effect while it is paused."""
        self.reason = reason or self.reason
        if self.is_open:
            return
        self.outages += 1
        self._closed.clear()
        self._opened.set()
        failed = f"{sum(self._recent)} of the last {len(self._recent)} rollouts failed"
        logger.error("dispatch is paused: %s, the last one: %s", failed, self.reason)
        # The event loop keeps only weak references to its tasks: without this one the probe could be garbage-collected.
        self._prober = asyncio.get_running_loop().create_task(self._probe_until_closed())
        self._prober.add_done_callback(self._report_error)

    def _report_error(self, prober: asyncio.Task[None]) -> None:
        # The circuit stays open: the run ends with this error, and no rollout should start until then.
        if not prober.cancelled() and (error := prober.exception()) is not None:
            self.on_error(error)

    async def _probe_until_closed(self) -> None:
        # The first probe comes after a pause, too: a moment ago the services failed.
        await asyncio.sleep(self._settings.probe_seconds)
        try:
            await retry_every(self._settings.probe_seconds).run(self._try_probe)
        except ServiceError as error:
            # A refusal of the probe's question is an answer, too: the services work again.
            if error.kind not in PERMANENT_KINDS:
                raise
        self._recent.clear()  # failures of the outage must not open the circuit again
        self._opened.clear()
        self._closed.set()
        logger.info("services answer again; dispatch continues")

    async def _try_probe(self) -> None:
        try:
            await self._probe()
        except ServiceError as error:
            raise_if_run_ends("the probe of the services", error)
            if error.kind in OUTAGE_KINDS:
                self.reason = str(error)
                logger.warning("services are still failing: %s", error)
            raise
