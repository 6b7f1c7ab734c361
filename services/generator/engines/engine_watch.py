"""Makes the service not ready while an engine refuses or fails every request."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from searchrl.errors import ErrorKind, ServiceError
from searchrl.platform.health import Health

logger = logging.getLogger(__name__)

FAILURES_BEFORE_PROBE = 5
"""In a row. Fewer would probe after some bad requests of a caller; more would leave a failing engine ready longer."""
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
"""Pauses between probes double from the first to this: an engine that works again is ready at most this much later."""


class EngineWatch:
    """Counts failures in a row; after ``FAILURES_BEFORE_PROBE`` of them it probes the engine itself.

    Failed requests alone prove nothing, since a caller may send five that no engine would accept. A failed probe does:
    then the part ``name`` of the service's health is failing, with the engine's message as the reason, until a probe
    succeeds or finds the engine overloaded. At most one task probes at a time.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[object]],
        health: Health,
        *,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._name = name
        self._probe = probe
        self._health = health
        self._first_pause_seconds = first_pause_seconds
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Probe once. Returns in any case: an engine that does not answer yet may still be starting."""
        if not await self._probe_succeeds():
            self._start_probing()

    async def stop(self) -> None:
        """End the task that probes."""
        # ``wait`` and not ``await``: the task ends with CancelledError, which must not end the stop of the service.
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})

    def record(self, error: ServiceError | None) -> None:
        """Record how one request ended; an overload is not a failure."""
        if error is None:
            self._failures = 0
        elif error.kind is not ErrorKind.OVERLOADED:
            self._failures += 1
            if self._failures >= FAILURES_BEFORE_PROBE and (self._probing is None or self._probing.done()):
                self._failures = 0
                self._probing = asyncio.create_task(self._probe_now())

    async def _probe_now(self) -> None:
        if not await self._probe_succeeds():
            await self._probe_until_success()

    def _start_probing(self) -> None:
        self._probing = asyncio.create_task(self._probe_until_success())

    async def _probe_until_success(self) -> None:
        pause = self._first_pause_seconds
        while True:
            # The pause comes first: the caller has just seen a probe fail.
            await asyncio.sleep(pause)
            if await self._probe_succeeds():
                return
            pause = min(MAX_PAUSE_SECONDS, 2 * pause)

    async def _probe_succeeds(self) -> bool:
        try:
            await self._probe()
        except ServiceError as error:
            # A 429 comes from a server that can be reached and is busy: it works, whatever an earlier probe saw.
            if error.kind is not ErrorKind.OVERLOADED:
                logger.warning("the %s does not answer", self._name, extra={"data": {"reason": str(error)}})
                self._health.set_failing(self._name, str(error))
                return False
        except Exception:  # whatever a probe raises, the next one must still run
            logger.exception("the probe of the %s failed unexpectedly", self._name)
            self._health.set_failing(self._name, f"internal error while probing the {self._name}")
            return False
        self._health.set_working(self._name)
        return True
