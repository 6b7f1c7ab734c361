"""Defines rankings: their rows, their failures, what they depend on, and how several are fused into one."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from searchrl.errors import OUTAGE_KINDS, ErrorKind, Unavailable

# Rows per ranking, at least. With k = 60 a row below this depth would get at most 1/161 from a ranking, where the first
# one gets 1/61; a larger depth costs every first stage time.
FUSION_DEPTH = 100


class RankedRows(NamedTuple):
    """Row numbers of one query's results, best first, with their scores. Equal scores are in row order."""

    rows: list[int]
    scores: list[float]


class RankingFailure(NamedTuple):
    """Why one query has no ranking."""

    kind: ErrorKind
    message: str

    @property
    def text(self) -> str:
        return f"{self.kind.value}: {self.message}"

    @property
    def retry_after_seconds(self) -> float | None:
        """Seconds after which the same query may succeed; None if it would fail again."""
        return Unavailable().retry_after_seconds if self.kind in OUTAGE_KINDS else None


Ranking = RankedRows | RankingFailure


class RankingScope(NamedTuple):
    """Everything that a ranking depends on besides the query; queries of equal scope can be ranked in one call.

    Attributes:
        model: encoder and search effort; empty for indexes without vectors.
    """

    generation: str
    model: str
    mode: str
    top_k: int
    filters: tuple[tuple[str, str], ...]


class Ranker(Protocol):
    """The first stage of a search over an index: ranks rows of one generation. Called by one thread at a time."""

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        """Return up to ``top_k`` rows per query whose metadata equals ``filters``, best first."""
        ...


class ReciprocalRankFusion:
    """Fuse rankings by summed reciprocal rank (Cormack et al., SIGIR 2009).

    The score of a row is the sum over rankings of weight / (k + rank), ranks from 1. The paper's k is 60; a smaller one
    favors the top of each ranking, a larger one the rows that several rankings share.
    """

    def __init__(self, k: int = 60, weights: Sequence[float] | None = None) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self._k = k
        self._weights = weights

    def fuse(self, rankings: Sequence[Sequence[int]], limit: int) -> RankedRows:
        """Return the ``limit`` best rows, best first; ties go to the lower row."""
        weights = self._weights or [1.0] * len(rankings)
        scores: dict[int, float] = {}
        for weight, ranking in zip(weights, rankings, strict=True):
            for position, row in enumerate(ranking, start=1):
                scores[row] = scores.get(row, 0.0) + weight / (self._k + position)
        best = sorted(scores, key=lambda row: (-scores[row], row))[:limit]
        return RankedRows(best, [scores[row] for row in best])
