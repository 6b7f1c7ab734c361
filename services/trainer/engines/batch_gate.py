"""Which waiting requests may decode together, and when?

In lockstep a batch starts only when every live session waits for tokens, and takes all of them in the order of their
ids: what decodes together then never depends on how long retrieval took. Otherwise whatever waits joins at once.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

Request = TypeVar("Request")


class BatchGate(Generic[Request]):
    """Holds waiting requests by rollout id; not thread-safe, the engine calls it under its lock."""

    def __init__(self, lockstep: bool) -> None:
        self._lockstep = lockstep
        self._live: set[str] = set()
        self._ended: list[str] = []
        self._waiting: dict[str, Request] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def open_session(self, rollout_id: str) -> None:
        """From now on a lockstep batch waits for this rollout."""
        self._live.add(rollout_id)

    def close_session(self, rollout_id: str) -> None:
        """No batch waits for this rollout any more."""
        self._live.discard(rollout_id)
        self._ended.append(rollout_id)

    def add(self, rollout_id: str, request: Request) -> None:
        """Queue a request; a rollout asks for one turn at a time.

        Raises:
            ValueError: the rollout has a request waiting already.
        """
        if rollout_id in self._waiting:
            raise ValueError(f"rollout {rollout_id} already waits for its next turn")
        self._waiting[rollout_id] = request

    def discard(self, rollout_id: str) -> None:
        """Forget a request whose caller went away."""
        self._waiting.pop(rollout_id, None)

    def is_open(self, idle: bool) -> bool:
        """May the waiting requests start, given whether nothing decodes at the moment?"""
        if not self._lockstep:
            return bool(self._waiting)
        return idle and bool(self._waiting) and self._live <= self._waiting.keys()

    def take(self) -> list[Request]:
        """Remove and return everything that waits, ordered by rollout id."""
        batch = [self._waiting[rollout_id] for rollout_id in sorted(self._waiting)]
        self._waiting.clear()
        return batch

    def take_all_waiting(self) -> Iterable[Request]:
        """Remove and return the requests that will never start because the engine closes."""
        return self.take()

    def take_ended(self) -> list[str]:
        """Rollouts that ended since the last call; what the engine keeps of them can go."""
        ended, self._ended = self._ended, []
        return ended
