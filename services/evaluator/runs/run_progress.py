"""Provides the progress of a run and its results so far."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from searchrl.errors import OUTAGE_KINDS
from searchrl.statistics.intervals import Estimate
from services.evaluator.records.episode import NOT_APPLICABLE, Episode
from services.evaluator.records.evaluation_run import RunRecord
from services.evaluator.scoring.measures import MEASURES, summarize, summarize_quickly


@dataclass(frozen=True, slots=True)
class ColumnResults:
    """The current state of one column.

    Attributes:
        done: questions answered, and judged if they have golden answers.
        total: questions of the run.
        outcomes: number of the other questions by kind of failure, including ``not_applicable``.
    """

    label: str
    done: int
    total: int
    estimates: Mapping[str, Estimate]
    outcomes: Mapping[str, int] = field(default_factory=dict)

    @property
    def not_applicable(self) -> int:
        """Questions that the method does not apply to."""
        return self.outcomes.get(NOT_APPLICABLE, 0)

    @property
    def lost(self) -> int:
        """Questions lost to outages; a later attempt may answer them."""
        return sum(count for kind, count in self.outcomes.items() if kind in OUTAGE_KINDS)

    @property
    def pending(self) -> int:
        """Questions whose turn has not come."""
        return self.total - self.done - sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Questions lost to outages or refused permanently."""
        return sum(self.outcomes.values()) - self.not_applicable

    @property
    def coverage(self) -> float:
        """Share of the applicable questions that the column's numbers are based on."""
        applicable = self.total - self.not_applicable
        return self.done / applicable if applicable else 0.0


@dataclass(frozen=True, slots=True)
class RunResults:
    """A run with its columns."""

    record: RunRecord
    columns: tuple[ColumnResults, ...]


class RunProgress:
    """Counts and values of a run in this process; watchers wait for its next revision. Event loop only."""

    def __init__(self, record: RunRecord, episodes: Iterable[Episode]) -> None:
        self.record = record
        self.revision = 0
        self._changed = asyncio.Event()
        # Values and not sums: the intervals need their spread. A run of 10,000 questions and 8 columns has 800,000
        # floats.
        self._values: dict[str, dict[str, list[float]]] = {
            column.name: {measure.name: [] for measure in MEASURES} for column in record.columns
        }
        self._done: Counter[str] = Counter()
        # By question and not as counts, because a later pass may replace a failure by an answer.
        self._failures: dict[tuple[str, str], str] = {}
        for episode in episodes:
            self.add(episode)

    def add(self, episode: Episode) -> None:
        """Count an episode; an earlier failure of the same question is forgotten."""
        pair = (episode.label, episode.question_id)
        self._failures.pop(pair, None)
        if episode.failure:
            self._failures[pair] = episode.failure
        else:
            self._done[episode.label] += 1
            for measure in MEASURES:
                value = measure.read(episode)
                if value is not None:
                    self._values[episode.label][measure.name].append(value)
        self.notify()

    def finish(self, record: RunRecord) -> None:
        """Show the run's final state."""
        self.record = record
        self.notify()

    def notify(self) -> None:
        """Wake every watcher."""
        self.revision += 1
        self._changed.set()

    async def wait_for_change(self, revision: int) -> None:
        """Wait until something has changed since ``revision``; returns at once if it already has."""
        # One event serves all watchers: ``set`` wakes every task that waits now, and one that clears it cannot hide a
        # change from the others, because each compares the revision it has seen.
        while self.revision == revision:
            self._changed.clear()
            await self._changed.wait()

    def results(self) -> RunResults:
        """The run now, with normal intervals, which are cheap enough to compute for every message of a watch."""
        outcomes: dict[str, Counter[str]] = {column.name: Counter() for column in self.record.columns}
        for (label, _), failure in self._failures.items():
            outcomes[label][failure] += 1
        columns = tuple(
            ColumnResults(
                column.name,
                self._done[column.name],
                self.record.total_questions,
                summarize_quickly(self._values[column.name]),
                dict(outcomes[column.name]),
            )
            for column in self.record.columns
        )
        return RunResults(self.record, columns)


def summarize_stored(record: RunRecord, episodes: Iterable[Episode]) -> RunResults:
    """The run as the store has it, with bootstrap intervals."""
    by_label: dict[str, list[Episode]] = {column.name: [] for column in record.columns}
    for episode in episodes:
        by_label[episode.label].append(episode)
    columns = []
    for label, rows in by_label.items():
        failures = Counter(row.failure for row in rows if row.failure)
        done = len(rows) - failures.total()
        columns.append(ColumnResults(label, done, record.total_questions, summarize(rows), dict(failures)))
    return RunResults(record, tuple(columns))
