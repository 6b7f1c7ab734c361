"""Which failures are worth another try, and after how long?"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from searchrl.errors import ErrorKind, ServiceError

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRIED_KINDS = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.OVERLOADED, ErrorKind.DEADLINE, ErrorKind.INTERNAL})


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential waits with full jitter above a floor; a server's Retry-After is the least that is waited."""

    attempts: int = 5
    first_seconds: float = 0.5
    largest_seconds: float = 15.0
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Call until it succeeds, fails for good, or the attempts are used up.

        Raises:
            ServiceError: the last failure.
        """
        for attempt in range(self.attempts):
            try:
                return await operation()
            except ServiceError as error:
                if error.kind not in RETRIED_KINDS or attempt + 1 == self.attempts:
                    raise
                wait = self._seconds(attempt, error.retry_after_seconds)
                logger.info("attempt %d failed (%s: %s); again in %.2f s", attempt + 1, error.kind, error, wait)
                await self.sleep(wait)
        raise AssertionError("attempts must be at least 1")

    def _seconds(self, attempt: int, retry_after: float | None) -> float:
        ceiling = min(self.largest_seconds, self.first_seconds * 2**attempt)
        return max(random.uniform(ceiling / 2, ceiling), retry_after or 0.0)
