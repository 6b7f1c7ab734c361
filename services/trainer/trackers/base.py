"""Defines what a tracker is given and what it does, and keeps the id of its run in the run folder."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

from searchrl.errors import ConfigurationError
from searchrl.storage.durable_files import atomic_write

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


SAMPLE_COLUMNS = ("step", "question", "turns", "documents", "answer", "reward", "outcome")


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

    @property
    def rows(self) -> list[list[Any]]:
        """The samples as rows of a table with ``SAMPLE_COLUMNS``."""
        return [
            [
                self.step,
                sample.question,
                "\n\n".join(sample.turns),
                "\n".join(sample.documents),
                sample.answer,
                sample.reward,
                sample.outcome,
            ]
            for sample in self.samples
        ]


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

    def kept_run(self, tracker: str) -> "KeptRun":
        return KeptRun(self.folder / "trackers" / f"{tracker}.json")


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


class KeptRun:
    """The id of a tracker's run and the last steps that were sent there, so that a resumed run continues both.

    A killed run repeats the steps after its checkpoint, and a server has no place for a second value of a step. So a
    step is noted before it is sent: after a kill in between it is missing there, never twice.

    Only the tracker's thread uses it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, Any] | None = None

    @property
    def id(self) -> str | None:
        """The id; None if no run was started there."""
        return self._read().get("run")

    def start(self, run_id: str) -> None:
        """Keep the id of a run that is about to be started, or was."""
        self._write({"run": run_id})

    def take(self, step: TrackedStep) -> bool:
        """Note that ``step`` is about to be sent; False if it, or a later one of the same part, was sent before."""
        kept = self._read()
        # A new run is validated before its first step, as step 0.
        if step.step <= kept.get(step.part, -1):
            return False
        self._write({**kept, step.part: step.step})
        return True

    def _read(self) -> dict[str, Any]:
        if self._kept is None:
            try:
                self._kept = dict(json.loads(self._path.read_text()))
            except FileNotFoundError:
                self._kept = {}
        return self._kept

    def _write(self, kept: dict[str, Any]) -> None:
        self._kept = kept  # first: on a full disk the process still continues its run instead of starting others
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path, json.dumps(kept) + "\n")


def without_secrets(address: str) -> str:
    """Return an address without user, password and parameters, which no file, log or message may show."""
    # Up to the last @, whatever its form: of what is no complete URL, ``urlsplit`` would find no user.
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    return f"{scheme}{separator}{re.split('[?#]', rest.rpartition('@')[2])[0]}"


def check_address(address: str, name: str) -> str:
    """Return the address of a tracker's server, which run.yaml, logs and the tracker itself show.

    Raises:
        ValueError: it holds a user, a password or parameters; the message does not show them.
    """
    if without_secrets(address) != address:
        raise ValueError(f"{name} holds a user, a key or parameters: give these by key_file, which nothing shows")
    return address


def read_secret(path: Path | None, setting: str) -> str | None:
    """Return what a file with a key holds; None if no file is named.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"{setting}: cannot read {path}: {reason}") from error
    if not text:
        raise ConfigurationError(f"{setting}: {path} is empty")
    return text
