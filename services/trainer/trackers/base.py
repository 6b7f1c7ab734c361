"""Defines what a tracker is given and what it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

Numbers = Mapping[str, float | int | str | bool | None]


class RunEnd(Enum):
    """How a process of a run ended. A stopped run can be resumed, and so can a failed one."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled trajectory as people read it; ``reward`` is None if there is none."""

    question: str
    turns: tuple[str, ...]
    documents: tuple[str, ...]
    answer: str
    reward: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class TrackedStep:
    """One step: its line of ``metrics.jsonl``, the time at which it ended, and some of its trajectories.

    The validation of the version that a step trained comes later, as a part of its own with the same step.
    """

    step: int
    line: Numbers
    time: float
    samples: tuple[Sample, ...] = ()
    part: Literal["training", "validation"] = "training"

    @property
    def numbers(self) -> dict[str, float]:
        """What a tracker draws as curves; a truth value is 0 or 1."""
        return {
            name: float(value) for name, value in self.line.items() if isinstance(value, int | float) and name != "step"
        }


@dataclass(frozen=True, slots=True)
class TrackerContext:
    """The run that a tracker shows.

    Attributes:
        folder: the run folder.
        config: the settings of the run, which name files of keys and hold no key.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Shows the steps of a run somewhere else; ``metrics.jsonl`` stays their record.

    Its constructor refuses what cannot work, such as a missing library or key, and connects to nothing. The methods run
    in the tracker's own thread (``TrackerThread``), one at a time, and may raise anything: a step is then lost here.
    """

    def open(self, after_step: int) -> None:
        """Start the run, or continue it after ``after_step``; called again before the next step if a method raised."""
        ...

    def record(self, step: TrackedStep) -> None: ...

    def close(self, end: RunEnd) -> None:
        """Deliver what is buffered, and say how the run ended."""
        ...
