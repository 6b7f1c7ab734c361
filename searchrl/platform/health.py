"""Is this service ready for traffic, and is it alive?"""

import threading
from collections.abc import Callable


class Health:
    """Readiness with its reason, and liveness; may be changed from any thread.

    The service as a whole is opened and closed by ``set_ready`` and ``set_not_ready``. Parts that fail by themselves,
    e.g. the thread that owns the index, are marked by name beside that, so that one part's recovery cannot hide
    another part's failure. A dead part never recovers: liveness ends with it, and the process should be replaced.
    """

    def __init__(self) -> None:
        self.draining = False
        self._open = False
        self._state = "starting"
        self._failing: dict[str, str] = {}
        self._dead: str | None = None
        self._listeners: list[Callable[[bool], None]] = []
        self._changing = threading.RLock()

    @property
    def ready(self) -> bool:
        return self._open and not self.draining and self._dead is None and not self._failing

    @property
    def alive(self) -> bool:
        return self._dead is None

    @property
    def reason(self) -> str:
        """Why the service is not ready; "ok" where it is."""
        if self.draining:
            return "draining"
        if self._dead is not None:
            return self._dead
        if self._open and self._failing:
            return "; ".join(f"{part}: {reason}" for part, reason in sorted(self._failing.items()))
        return self._state

    def subscribe(self, listener: Callable[[bool], None]) -> None:
        """Call ``listener`` with the readiness now and at each change, in the thread that makes the change."""
        with self._changing:
            self._listeners.append(listener)
            listener(self.ready)

    def set_ready(self) -> None:
        """Open for traffic; has no effect once draining."""
        with self._changing:
            if not self.draining:
                self._open, self._state = True, "ok"
                self._tell()

    def set_not_ready(self, reason: str) -> None:
        with self._changing:
            self._open, self._state = False, reason
            self._tell()

    def set_failing(self, part: str, reason: str) -> None:
        """Not ready until ``set_working`` is called for the same part."""
        with self._changing:
            self._failing[part] = reason
            self._tell()

    def set_working(self, part: str) -> None:
        """Take back ``set_failing``."""
        with self._changing:
            if self._failing.pop(part, None) is not None:
                self._tell()

    def set_dead(self, reason: str) -> None:
        """Neither ready nor alive, for good; the first reason is kept."""
        with self._changing:
            self._dead = self._dead or reason
            self._tell()

    def start_draining(self) -> None:
        """Refuse new traffic for good: the process is about to stop."""
        with self._changing:
            self.draining = True
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener(self.ready)
