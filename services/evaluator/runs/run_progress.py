"""How far is a run, and what do its numbers look like so far?"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.evaluator.runs.episode import Episode
from services.evaluator.runs.evaluation_run import RunRecord
from services.evaluator.scoring.intervals import Estimate
from services.evaluator.scoring.measures import MEASURES, quick_summary, summarise


@dataclass(frozen=True, slots=True)
class ColumnView:
    """One column as it stands. ``done`` questions were answered, ``failed`` ones were lost to failures, by kind."""

    label: str
    done: int
    failed: int
    total: int
    estimates: Mapping[str, Estimate]
    failure_kinds: Mapping[str, int] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of the questions that stand behind the column's numbers."""
        return self.done / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with its columns."""

    record: RunRecord
    columns: tuple[ColumnView, ...]


class RunProgress:
    """Counts and values of a run in this process; watchers wait for its next revision."""

    def __init__(self, record: RunRecord, episodes: Iterable[Episode]) -> None:
        self.record = record
        self.revision = 0
        self._changed = asyncio.Event()
        self._values: dict[str, dict[str, list[float]]] = {
            column.name: {measure.name: [] for measure in MEASURES} for column in record.columns
        }
        self._done: Counter[str] = Counter()
        self._failures: dict[str, Counter[str]] = {column.name: Counter() for column in record.columns}
        for episode in episodes:
            self.add(episode)

    def add(self, episode: Episode) -> None:
        """Count a finished episode."""
        if episode.failure:
            self._failures[episode.label][episode.failure] += 1
        else:
            self._done[episode.label] += 1
            for measure in MEASURES:
                value = measure.read(episode)
                if value is not None:
                    self._values[episode.label][measure.name].append(value)
        self.announce()

    def finish(self, record: RunRecord) -> None:
        """Show the run's final state."""
        self.record = record
        self.announce()

    def announce(self) -> None:
        """Wake every watcher."""
        self.revision += 1
        self._changed.set()

    async def change_after(self, revision: int) -> None:
        """Wait until something has changed since ``revision``."""
        while self.revision == revision:
            self._changed.clear()
            await self._changed.wait()

    def view(self) -> RunView:
        """The run now, with normal intervals."""
        columns = tuple(
            ColumnView(
                column.name,
                self._done[column.name],
                self._failures[column.name].total(),
                self.record.total_questions,
                quick_summary(self._values[column.name]),
                dict(self._failures[column.name]),
            )
            for column in self.record.columns
        )
        return RunView(self.record, columns)


def stored_view(record: RunRecord, episodes: Iterable[Episode]) -> RunView:
    """The run as the store has it, with bootstrap intervals."""
    by_label: dict[str, list[Episode]] = {column.name: [] for column in record.columns}
    for episode in episodes:
        by_label[episode.label].append(episode)
    columns = []
    for label, rows in by_label.items():
        failures = Counter(row.failure for row in rows if row.failure)
        done = len(rows) - failures.total()
        columns.append(
            ColumnView(label, done, failures.total(), record.total_questions, summarise(rows), dict(failures))
        )
    return RunView(record, tuple(columns))
