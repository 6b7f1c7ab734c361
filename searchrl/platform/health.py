"""Tracks whether a service is ready for traffic and whether its process is alive."""

import asyncio
import threading
from collections.abc import Callable


class Health:
    """Readiness with its reason, and liveness; may be changed from any thread.

    ``set_ready`` and ``set_not_ready`` apply to the entire service. Parts that fail independently, e.g. the thread that
    owns the index, are marked by name in addition, so that the recovery of one part cannot hide the failure of another.
    A dead part never recovers: liveness ends with it, and the process should be replaced.

    Every change holds a lock, in which the listeners are called, so that they see the changes in order. The lock is
    reentrant, because a listener may read or change health itself. Readers take no lock.
    """

    def __init__(self) -> None:
        self.draining = False
        self._open = False
        self._state = "starting"
        self._failing: dict[str, str] = {}
        self._dead: str | None = None
        self._listeners: list[Callable[[bool], None]] = []
        # Held while listeners run, so a listener must not wait for a thread that changes health.
        self._changing = threading.RLock()

    @property
    def ready(self) -> bool:
        # Each attribute is read atomically (one reference). A reader between two changes may combine their states;
        # the notification that follows the change corrects it.
        return self._open and not self.draining and self._dead is None and not self._failing

    @property
    def alive(self) -> bool:
        return self._dead is None

    @property
    def reason(self) -> str:
        """Why the service is not ready; "ok" if it is."""
        if self.draining:
            return "draining"
        if self._dead is not None:
            return self._dead
        if self._open and self._failing:
            return "; ".join(f"{part}: {reason}" for part, reason in sorted(self._failing.items()))
        return self._state

    def subscribe(self, listener: Callable[[bool], None]) -> None:
        """Call ``listener`` with the readiness, now and after each change, in the thread that makes the change."""
        with self._changing:
            self._listeners.append(listener)
            listener(self.ready)

    def subscribe_in_loop(self, listener: Callable[[bool], None]) -> None:
        """Like ``subscribe``, but call ``listener`` in the running event loop, soon after each change.

        For listeners that use tasks or asyncio's events, which only the thread of their loop may do.
        """
        loop = asyncio.get_running_loop()

        def forward(ready: bool) -> None:
            # A daemon thread, such as the owner of an index, may still fail while the process ends.
            if not loop.is_closed():
                loop.call_soon_threadsafe(listener, ready)

        self.subscribe(forward)

    def set_ready(self) -> None:
        """Open for traffic; has no effect once draining."""
        with self._changing:
            # SIGTERM may arrive while the service still starts; the start that then completes must not reopen it.
            if not self.draining:
                self._open, self._state = True, "ok"
                self._notify()

    def set_not_ready(self, reason: str) -> None:
        with self._changing:
            self._open, self._state = False, reason
            self._notify()

    def set_failing(self, part: str, reason: str) -> None:
        """Not ready until ``set_working`` is called for the same part."""
        with self._changing:
            self._failing[part] = reason
            self._notify()

    def set_working(self, part: str) -> None:
        """Undo ``set_failing`` for the same part."""
        with self._changing:
            # Called after every successful job, so listeners hear only of a real change.
            if self._failing.pop(part, None) is not None:
                self._notify()

    def set_dead(self, reason: str) -> None:
        """Mark the service as neither ready nor alive, permanently; the first reason is kept."""
        with self._changing:
            self._dead = self._dead or reason
            self._notify()

    def start_draining(self) -> None:
        """Refuse new traffic permanently, because the process is about to stop."""
        with self._changing:
            self.draining = True
            self._notify()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener(self.ready)
