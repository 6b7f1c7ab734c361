"""Decides whether a failed call is retried, and after how long."""

import asyncio
import itertools
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from searchrl.errors import NOT_STARTED_KINDS, OUTAGE_KINDS, PERMANENT_KINDS, ErrorKind, ServiceError
from searchrl.platform.request_context import remaining_seconds

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

MOST_DOUBLINGS = 64  # far beyond any ``max_seconds``; a float overflows after 1023
UNLIMITED_ATTEMPTS = sys.maxsize


def longest(_low: float, high: float) -> float:
    """A ``uniform`` without randomness: the longest pause."""
    return high


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter, inside the caller's deadline.

    Only failures of the given ``kinds`` are retried: ``errors.OUTAGE_KINDS`` if the work may be repeated, never
    permanent ones, which would recur. A pause is at least as long as the server's Retry-After. A pause that would
    outlast the deadline is not started: the failure itself is raised, not a passed deadline.

    Without a Retry-After the four default pauses are up to 0.05, 0.1, 0.2 and 0.4 s (each at least half of that):
    enough for a lost connection, while an outage is reported within a second.

    Attributes:
        attempts: calls in total, the first one included.
        first_seconds: longest first pause; it doubles with every attempt.
        max_seconds: longest pause, without the server's Retry-After.
        kinds: error kinds that are retried.
        heeds_retry_after: False where the calls below have waited as the server asked already.
        uniform: draws the pause between half of it and all of it; ``longest`` makes pauses exact.
    """

    attempts: int = 5
    first_seconds: float = 0.05
    max_seconds: float = 5.0
    kinds: frozenset[ErrorKind] = NOT_STARTED_KINDS
    heeds_retry_after: bool = True
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = field(default=random.uniform)

    def __post_init__(self) -> None:
        if self.kinds & PERMANENT_KINDS:
            raise ValueError(f"permanent failures are not tried again: {sorted(self.kinds & PERMANENT_KINDS)}")

    async def run(
        self,
        call: Callable[[], Awaitable[Answer]],
        before_retry: Callable[[ServiceError], Awaitable[None]] | None = None,
    ) -> Answer:
        """Await ``call()`` until it succeeds or its failure is final.

        Args:
            before_retry: called after each pause with the failure; may wait until a retry makes sense.

        Raises:
            ServiceError: the last failure.
        """
        for attempt in itertools.count(1):
            try:
                return await call()
            except ServiceError as error:
                pause = self._pause_or_raise(error, attempt)
                # Python unbinds ``error`` at the end of this clause. The pause lies outside it, so that an exception
                # raised there, such as a cancellation, does not carry this failure as its context.
                failure = error
            await self.sleep(pause)
            if before_retry is not None:
                await before_retry(failure)
        raise AssertionError("unreachable")

    def run_blocking(self, call: Callable[[], Answer], sleep: Callable[[float], object] = time.sleep) -> Answer:
        """Like ``run``, for a program without an event loop."""
        for attempt in itertools.count(1):
            try:
                return call()
            except ServiceError as error:
                pause = self._pause_or_raise(error, attempt)
            sleep(pause)
        raise AssertionError("unreachable")

    def _pause_or_raise(self, error: ServiceError, attempt: int) -> float:
        pause = self.pause_after(error, attempt)
        if pause is None:
            raise error
        logger.info("attempt %d failed (%s: %s); again in %.2f s", attempt, error.kind, error, pause)
        return pause

    def pause_after(self, error: ServiceError, attempt: int) -> float | None:
        """Return the seconds to wait after failure number ``attempt`` (from 1); None if the error is final."""
        if error.kind not in self.kinds or attempt >= self.attempts:
            return None
        # "Equal jitter" (Brooker, "Exponential Backoff And Jitter", AWS 2015): half of the pause is fixed, half is
        # random. Example: failure 3 has a ceiling of 0.05 * 2**2 = 0.2 s, so it waits 0.1 to 0.2 s. Without the
        # random half, all rollouts that one outage interrupted would return in the same millisecond; without the
        # fixed half, some would return at once.
        ceiling = self.longest_pause(attempt)
        pause = self.uniform(0.5 * ceiling, ceiling)
        if error.retry_after_seconds is not None and self.heeds_retry_after:
            pause += error.retry_after_seconds * self.uniform(1.0, 1.5)  # spread: callers return at different times
        left = remaining_seconds()
        # A retry that could only start after the deadline would replace the real failure by DEADLINE, and cost the
        # wait.
        return None if left is not None and pause >= left else pause

    def longest_pause(self, attempt: int) -> float:
        """Return the longest pause after failure number ``attempt`` (from 1), in seconds, without a Retry-After."""
        doublings = min(attempt - 1, MOST_DOUBLINGS)
        return min(self.max_seconds, self.first_seconds * 2.0**doublings)


def retry_every(seconds: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> RetryPolicy:
    """Return the policy that repeats a call, with equal pauses, for as long as an outage lasts."""
    return RetryPolicy(
        attempts=UNLIMITED_ATTEMPTS,
        first_seconds=seconds,
        max_seconds=seconds,
        kinds=OUTAGE_KINDS,
        heeds_retry_after=False,
        sleep=sleep,
        uniform=longest,
    )


ONE_ATTEMPT = RetryPolicy(attempts=1)
PATIENT = RetryPolicy(attempts=1000, first_seconds=0.25)
"""Retries until the call's deadline: for the first call of a job, whose pod may start before the services, or before
the network lets it through. 1000 attempts have about an hour of pauses."""
