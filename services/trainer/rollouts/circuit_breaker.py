"""Provides the circuit breaker that pauses the dispatch of rollouts while the services they need fail."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from searchrl.errors import PERMANENT_KINDS, ConfigurationError, ServiceError
from services.trainer.rollouts.refusals import raise_if_run_ends

logger = logging.getLogger(__name__)


class CircuitBreaker:
    """Pauses dispatch when too many of the last rollouts failed by infrastructure; resumes it when a probe succeeds.

    "Open" means, as of a gate, that rollouts pass.
    ``probe`` uses the services that rollouts need and raises ``ServiceError`` while they are unavailable. A probe that
    is refused whatever its question ends the run through ``on_refusal``; if only its question is refused, the services
    answer again.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        *,
        failure_ratio: float,
        window: int,
        probe_seconds: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._probe = probe
        self._failure_ratio = failure_ratio
        self._recent: deque[bool] = deque(maxlen=window)
        self._probe_seconds = probe_seconds
        self._sleep = sleep
        self._open = asyncio.Event()
        self._open.set()
        self._shut = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self.outages = 0
        self.reason = ""
        self.on_refusal: Callable[[ConfigurationError], None] = lambda _refusal: None

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def record(self, failed: bool, reason: str = "") -> None:
        """Count one finished rollout, or one attempt at a reward; dispatch may be paused."""
        self._recent.append(failed)
        if failed:
            self.reason = reason or self.reason
        full = len(self._recent) == self._recent.maxlen
        if full and sum(self._recent) > self._failure_ratio * len(self._recent):
            self.close()

    async def passed(self) -> None:
        """Wait until dispatch is not paused."""
        await self._open.wait()

    async def closed(self) -> None:
        """Wait until dispatch is paused."""
        await self._shut.wait()

    async def stop(self) -> None:
        """End a running probe."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    def close(self, reason: str = "") -> None:
        """Pause dispatch until a probe succeeds; has no effect while it is paused."""
        self.reason = reason or self.reason
        if not self.is_open:
            return
        self.outages += 1
        self._open.clear()
        self._shut.set()
        failed = f"{sum(self._recent)} of the last {len(self._recent)} rollouts failed"
        logger.error("dispatch is paused: %s, the last one: %s", failed, self.reason)
        self._prober = asyncio.get_running_loop().create_task(self._probe_until_well())

    async def _probe_until_well(self) -> None:
        while True:
            await self._sleep(self._probe_seconds)
            try:
                await self._probe()
            except ServiceError as error:
                try:
                    raise_if_run_ends("the probe of the services", error)
                except ConfigurationError as refusal:
                    self.on_refusal(refusal)
                    return
                if error.kind not in PERMANENT_KINDS:
                    self.reason = str(error)
                    logger.warning("services are still failing: %s", error)
                    continue
            break
        self._recent.clear()  # failures of the outage must not pause dispatch again
        self._shut.clear()
        self._open.set()
        logger.info("services answer again; dispatch continues")
