"""Decides which waiting requests start to decode together, and when.

In lockstep a batch starts only when every open session waits for tokens, and takes all of them in the order of their
ids, so what decodes together never depends on how long retrieval took. Example: of three open rollouts two wait for
tokens while the third searches; nothing starts until the third asks for tokens or its session closes. Without lockstep,
waiting requests join the running batch at the next token.
"""

from typing import Generic, TypeVar

Request = TypeVar("Request")


class BatchGate(Generic[Request]):
    """Holds waiting requests by rollout id; not thread-safe: the engine calls it while holding its lock.

    Sessions and requests arrive in the event loop's thread; the engine's owner thread takes them."""

    def __init__(self, lockstep: bool) -> None:
        self._lockstep = lockstep
        self._live: set[str] = set()
        self._ended: list[str] = []
        self._waiting: dict[str, Request] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def open_session(self, rollout_id: str) -> None:
        """Make every later lockstep batch wait for this rollout."""
        self._live.add(rollout_id)

    def close_session(self, rollout_id: str) -> None:
        """Stop waiting for this rollout, and let the engine drop its cache."""
        self._live.discard(rollout_id)
        self._ended.append(rollout_id)

    def add(self, rollout_id: str, request: Request) -> None:
        """Queue a request; a rollout asks for one turn at a time.

        Raises:
            ValueError: a request of the rollout is already waiting.
        """
        if rollout_id in self._waiting:
            raise ValueError(f"rollout {rollout_id} already waits for its next turn")
        self._waiting[rollout_id] = request

    def discard(self, rollout_id: str, request: Request) -> None:
        """Remove a request whose caller was cancelled; the session stays open until it is closed."""
        # It is absent if it decodes already, and then another request of the same rollout may wait: a caller's retry.
        if self._waiting.get(rollout_id) is request:
            del self._waiting[rollout_id]

    def is_open(self, idle: bool) -> bool:
        """Whether the waiting requests may start; ``idle`` says that nothing decodes at the moment."""
        if not self._lockstep:
            return bool(self._waiting)
        # A subset, not equality: a request without an open session takes part, and holds up nobody.
        return idle and bool(self._waiting) and self._live <= self._waiting.keys()

    def take(self) -> list[Request]:
        """Remove and return all waiting requests, ordered by rollout id."""
        # The order decides about slots, and slots about the shapes of passes: matrix products of other shapes may round
        # differently, and lockstep promises equal bits.
        batch = [self._waiting[rollout_id] for rollout_id in sorted(self._waiting)]
        self._waiting.clear()
        return batch

    def take_ended(self) -> list[str]:
        """Rollouts that ended since the last call; the engine may drop their caches."""
        ended, self._ended = self._ended, []
        return ended
