"""Decides when failures end a run: a lasting outage, or too many questions that are refused."""

from collections import Counter
from collections.abc import Iterable, Mapping

from searchrl.errors import InvalidRequest, Unavailable
from services.evaluator.records.episode import NOT_APPLICABLE, Episode

MAX_INITIAL_REFUSALS = 20
"""Refusals before a column's first answer that end the run at once. A wrong model or option makes every question fail;
a larger number only asks more of them.
"""
MIN_ALLOWED_REFUSALS = 5
"""Refusals that a column with answers may always have. Of 20 questions, a tenth would allow two bad ones only."""


class Misconfigured(InvalidRequest):
    """Every question of a column, or too many of them, is refused permanently: a person has to change something."""


class FailureLimits:
    """Counts the failures of one run.

    Args:
        totals: questions of each column, by label.
        max_consecutive_failures: consecutive failures of infrastructure that end the run.
        max_refused_fraction: fraction of a column's questions that may be refused permanently.
    """

    def __init__(
        self, totals: Mapping[str, int], *, max_consecutive_failures: int, max_refused_fraction: float
    ) -> None:
        self._totals = totals
        self._max_consecutive_failures = max_consecutive_failures
        self._max_refused_fraction = max_refused_fraction
        self._consecutive_failures = 0
        self._answered: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._first_refusal: dict[str, Episode] = {}

    def restore(self, episodes: Iterable[Episode]) -> None:
        """Count the episodes of an earlier part of the run, without ending the run for them."""
        for episode in episodes:
            self._count(episode)
        # An outage before the restart is no reason to end the run now.
        self._consecutive_failures = 0

    def check(self, episode: Episode) -> None:
        """Count an episode.

        Raises:
            Unavailable: too many consecutive episodes were lost to an outage.
            Misconfigured: too many of its column were refused.
        """
        self._count(episode)
        if self._consecutive_failures >= self._max_consecutive_failures:
            raise Unavailable(
                f"{self._consecutive_failures} consecutive episodes were lost to outages; the last: {episode.error}",
                retry_after_seconds=None,
            )
        label = episode.label
        at_start = not self._answered[label] and self._refused[label] >= MAX_INITIAL_REFUSALS
        # Checked at refusals only: another row of the column must not end the run for refusals that were accepted
        # before.
        if episode.is_refused and (at_start or self._refused[label] > self._max_refusals(label)):
            raise self._make_refusal_error(label)

    def check_end(self) -> None:
        """Check the complete run.

        Raises:
            Misconfigured: a column has refusals and no answer.
        """
        for label, refused in self._refused.items():
            if refused and not self._answered[label]:
                raise self._make_refusal_error(label)

    def _count(self, episode: Episode) -> None:
        # Most methods that do not apply never called the generator, so such a row does not show that it works.
        if episode.failure != NOT_APPLICABLE:
            self._consecutive_failures = self._consecutive_failures + 1 if episode.is_lost else 0
        if episode.is_refused:
            self._refused[episode.label] += 1
            self._first_refusal.setdefault(episode.label, episode)
        elif episode.failure != NOT_APPLICABLE and not episode.is_lost:
            self._answered[episode.label] += 1

    def _max_refusals(self, label: str) -> float:
        # With the default of 0.1: 5 of 20 questions, 5 of 50, 100 of 1000.
        return max(MIN_ALLOWED_REFUSALS, self._max_refused_fraction * self._totals.get(label, 0))

    def _make_refusal_error(self, label: str) -> Misconfigured:
        first = self._first_refusal[label]
        return Misconfigured(
            f"{self._refused[label]} of {self._totals.get(label, 0)} questions of {label} were refused permanently, "
            f"the first is {first.question_id!r} ({first.failure}: {first.error})"
        )
