"""Defines the result of every index and the interface that ranks texts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class RankedRows(NamedTuple):
    """Row numbers of one query's results, best first, with their scores. Equal scores are in row order."""

    rows: list[int]
    scores: list[float]


class Ranker(Protocol):
    """Ranks rows of a corpus for texts. Called by one thread at a time."""

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        """Return up to ``top_k`` rows per query whose metadata equals ``filters``, best first."""
        ...
