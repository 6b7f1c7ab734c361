"""Is this service ready for traffic?"""

from collections.abc import Callable


class Health:
    """Readiness with its reason; liveness is that the process answers at all."""

    def __init__(self) -> None:
        self.ready = False
        self.draining = False
        self.reason = "starting"
        self._listeners: list[Callable[[bool], None]] = []

    def subscribe(self, listener: Callable[[bool], None]) -> None:
        """Call ``listener`` with the state now and at each change."""
        self._listeners.append(listener)
        listener(self.ready)

    def set_ready(self) -> None:
        """Open for traffic; has no effect once draining."""
        if not self.draining:
            self._change(True, "ok")

    def set_not_ready(self, reason: str) -> None:
        self._change(False, reason)

    def start_draining(self) -> None:
        """Refuse new traffic for good: the process is about to stop."""
        self.draining = True
        self._change(False, "draining")

    def _change(self, ready: bool, reason: str) -> None:
        self.ready, self.reason = ready, reason
        for listener in self._listeners:
            listener(ready)
