"""Makes the service not ready while an engine refuses or fails every request."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable

from searchrl.errors import ErrorKind, ServiceError, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.retry import UNLIMITED_ATTEMPTS, RetryPolicy, longest

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
        self._retries = RetryPolicy(
            attempts=UNLIMITED_ATTEMPTS,
            first_seconds=first_pause_seconds,
            max_seconds=MAX_PAUSE_SECONDS,
            uniform=longest,  # one service probes alone, so its pauses need no spread
        )
        self._has_probed = asyncio.Event()
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Probe once. Returns in any case: an engine that does not answer yet may still be starting."""
        # The task itself, so that requests that fail during the first probe do not start a second one.
        if not self._is_probing():
            self._start_probing()
        await self._has_probed.wait()

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
            if self._failures >= FAILURES_BEFORE_PROBE and not self._is_probing():
                self._failures = 0
                self._start_probing()

    def _is_probing(self) -> bool:
        return self._probing is not None and not self._probing.done()

    def _start_probing(self) -> None:
        """Probe now, and repeat it until a probe succeeds."""
        # An empty context: a task started in a request inherits its deadline, after which every probe would fail, and
        # the service would stay not ready however well the engine works.
        probing = self._retries.run(self._probe_engine)
        self._probing = asyncio.get_running_loop().create_task(probing, context=contextvars.Context())

    async def _probe_engine(self) -> None:
        """Probe, and record the result in the service's health.

        Raises:
            Unavailable: the probe failed.
        """
        try:
            reason = await self._find_failure()
        finally:
            self._has_probed.set()
        if reason:
            raise Unavailable(reason, None)

    async def _find_failure(self) -> str:
        """Probe, and return the reason of the failure; empty if the engine works."""
        reason = ""
        try:
            await self._probe()
        except ServiceError as error:
            # A 429 comes from a server that can be reached and is busy: it works, whatever an earlier probe saw.
            if error.kind is not ErrorKind.OVERLOADED:
                logger.warning("the %s does not answer", self._name, extra={"data": {"reason": str(error)}})
                reason = str(error) or error.kind.value
        except Exception:  # whatever a probe raises, the next one must still run
            logger.exception("the probe of the %s failed unexpectedly", self._name)
            reason = f"internal error while probing the {self._name}"
        if reason:
            self._health.set_failing(self._name, reason)
        else:
            self._health.set_working(self._name)
        return reason
