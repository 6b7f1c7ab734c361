"""Fuses several rankings of a query into one by reciprocal rank."""

from collections.abc import Mapping, Sequence

from services.retriever.indexes.ranked_rows import RankedRows, Ranker

# Rows per ranking, at least. With k = 60 a row below this depth would get at most 1/161 from a ranking, where the first
# one gets 1/61; a larger depth costs every ranker time.
FUSION_DEPTH = 100


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


class HybridRanker:
    """Asks several rankers for at least ``FUSION_DEPTH`` rows each and fuses their rankings."""

    def __init__(self, rankers: Sequence[Ranker], fusion: ReciprocalRankFusion) -> None:
        self._rankers = rankers
        self._fusion = fusion

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        depth = max(top_k, FUSION_DEPTH)
        answers = [ranker.rank(queries, depth, filters) for ranker in self._rankers]
        return [
            self._fusion.fuse([ranked.rows for ranked in of_query], top_k) for of_query in zip(*answers, strict=True)
        ]
