"""Turns readiness off while an engine refuses or fails everything it is asked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from searchrl.errors import ErrorKind, ServiceError
from searchrl.platform.health import Health

logger = logging.getLogger(__name__)

FAILURES_BEFORE_PROBE = 5
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0


class EngineWatch:
    """Counts failures in a row; after some of them it asks the engine itself.

    Requests alone prove nothing, since a caller may send five that no engine would take. The engine's refusal of our
    own short request does: then the part ``name`` of the service's health is failing, with the engine's sentence,
    until such a request succeeds again.
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
        """Ask once. Returns in any case: an engine that is not there yet may come."""
        if not await self._works():
            self._probe_again()

    async def stop(self) -> None:
        """End the probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})

    def record(self, error: ServiceError | None) -> None:
        """Take note of how one request ended; an overload is no failure."""
        if error is None:
            self._failures = 0
        elif error.kind is not ErrorKind.OVERLOADED:
            self._failures += 1
            if self._failures >= FAILURES_BEFORE_PROBE and (self._probing is None or self._probing.done()):
                self._failures = 0
                self._probing = asyncio.create_task(self._check())

    async def _check(self) -> None:
        if not await self._works():
            await self._until_it_works()

    def _probe_again(self) -> None:
        self._probing = asyncio.create_task(self._until_it_works())

    async def _until_it_works(self) -> None:
        pause = self._first_pause_seconds
        while True:
            await asyncio.sleep(pause)
            if await self._works():
                return
            pause = min(MAX_PAUSE_SECONDS, 2 * pause)

    async def _works(self) -> bool:
        try:
            await self._probe()
        except ServiceError as error:
            if error.kind is ErrorKind.OVERLOADED:
                return True
            logger.warning("the %s does not answer", self._name, extra={"data": {"reason": str(error)}})
            self._health.set_failing(self._name, str(error))
            return False
        except Exception:  # whatever a probe raises, it must not be the last one
            logger.exception("the %s could not be asked", self._name)
            self._health.set_failing(self._name, f"internal error while asking the {self._name}")
            return False
        self._health.set_working(self._name)
        return True
