"""Mixes sets of training questions: which set each group of a run comes from, in exact shares."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, gcd, lcm
from pathlib import Path

from pydantic import Field

from searchrl.datasets.question_file import read_training_questions
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section

LONGEST_WINDOW = 10_000
"""Groups over which shares are exact, if the weights have no smaller window: a share is off by 0.005 % at most."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")  # part of the name of a metric in every tracker


class MixtureSource(Section):
    """One set of a mixture."""

    questions: Path = Field(description="Its questions, as in questions.")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Its share, relative to the others.")


@dataclass(frozen=True, slots=True)
class QuestionSource:
    """Questions with their name and weight in a mixture. The questions of a plain run have no name."""

    name: str
    questions: tuple[Question, ...]
    weight: float = 1.0


def check_mixture(mixture: Mapping[str, MixtureSource]) -> None:
    """Raises:
    ValueError: a name cannot be that of a metric, or a share is too small to be drawn.
    """
    for name in mixture:
        if NAME.fullmatch(name) is None:
            raise ValueError(f"mixture: {name!r} is no name of a set: 1 to 32 letters, digits, - and _")
    counts = apportion([source.weight for source in mixture.values()]) if mixture else []
    for name, count in zip(mixture, counts, strict=True):
        if count == 0:
            raise ValueError(f"mixture.{name}.weight is less than 1 in {LONGEST_WINDOW:,}: it would never be drawn")


def read_sources(mixture: Mapping[str, MixtureSource]) -> tuple[QuestionSource, ...]:
    """Read every set, in the order of their names: the order of a run file means nothing.

    Raises:
        ConfigurationError: a file cannot be used, or two sets use the same id.
    """
    sources: list[QuestionSource] = []
    owner: dict[str, str] = {}
    for name, source in sorted(mixture.items()):
        questions = read_training_questions(source.questions).questions
        for question in questions:
            # Rewards, baselines and questions that are left out are found by the id alone.
            if owner.setdefault(question.id, name) != name:
                raise ConfigurationError(
                    f"mixture: {owner[question.id]} and {name} both have a question with the id {question.id!r}; "
                    "give each question of the mixture an id of its own"
                )
        sources.append(QuestionSource(name, questions, source.weight))
    return tuple(sources)


class Mixture:
    """Assigns the groups of a run to sets, in windows that are all alike.

    Weights 2 and 1 give windows of three groups: the first set, the second, the first. So the state of a mixture is the
    number of groups that were drawn, and any run of groups has the shares of its sets as closely as whole numbers can.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = apportion(weights)
        self._window = _interleave(self.counts)
        seen = [0] * len(weights)
        self._earlier: list[int] = []  # of each group in the window: groups of its set before it
        for index in self._window:
            self._earlier.append(seen[index])
            seen[index] += 1

    def locate(self, group_id: int) -> tuple[int, int]:
        """Return the index of the group's set, and how many groups of that set precede it in the run."""
        windows, place = divmod(group_id, len(self._window))
        index = self._window[place]
        return index, windows * self.counts[index] + self._earlier[place]


def apportion(weights: Sequence[float]) -> list[int]:
    """Return the number of groups of each set in one window.

    The window is the shortest one in which every share is a whole number: weights 0.5, 0.3 and 0.2 give 5, 3 and 2. If
    that exceeds ``LONGEST_WINDOW``, the largest remainders get the groups that rounding down leaves over.
    """
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth here, and not the nearest binary fraction
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = gcd(*whole)
    counts = [count // divisor for count in whole]
    if sum(counts) <= LONGEST_WINDOW:
        return counts
    quotas = [weight * LONGEST_WINDOW / sum(exact) for weight in exact]
    counts = [floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda index: (counts[index] - quotas[index], index))
    for index in by_remainder[: LONGEST_WINDOW - sum(counts)]:
        counts[index] += 1
    return counts


def _interleave(counts: Sequence[int]) -> list[int]:
    """Spread the sets evenly over the window: each group goes to the set that is furthest behind its share."""
    # Smooth weighted round robin: each set earns its count per group, and a group costs the length of the window. All
    # credits are 0 again at the end of the window, so the next one is the same.
    credit = [0] * len(counts)
    order: list[int] = []
    for _ in range(sum(counts)):
        credit = [have + count for have, count in zip(credit, counts, strict=True)]
        chosen = max(range(len(counts)), key=lambda index: credit[index])  # of equal ones the first
        credit[chosen] -= sum(counts)
        order.append(chosen)
    return order
