"""A tracker that writes each step as a line of text."""

from services.trainer.trackers.base import RunEnd, TrackedStep, TrackerContext


class LinesTracker:
    """Appends to ``lines.txt`` in the run folder."""

    def __init__(self, _settings: None, context: TrackerContext) -> None:
        self._name = context.name
        self._path = context.folder / "lines.txt"

    def open(self, after_step: int) -> None:
        """See ``Tracker``."""
        self._path.touch()

    def record(self, step: TrackedStep) -> None:
        """See ``Tracker``."""
        self._write(f"{self._name} {step.step} {step.numbers}")

    def close(self, end: RunEnd) -> None:
        """See ``Tracker``."""
        self._write(end.value)

    def _write(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")
