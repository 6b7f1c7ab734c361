"""How do several rankings become one? Reciprocal rank fusion."""

from collections.abc import Mapping, Sequence

from services.retriever.indexes.ranked_rows import RankedRows, Ranker

FUSION_DEPTH = 100


class ReciprocalRankFusion:
    """Fuse rankings by summed reciprocal rank (Cormack et al., SIGIR 2009).

    The score of a row is the sum over rankings of weight / (k + rank), ranks from 1.
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
    """Asks several rankers for at least a hundred rows each and fuses their answers."""

    def __init__(self, rankers: Sequence[Ranker], fusion: ReciprocalRankFusion) -> None:
        self._rankers = rankers
        self._fusion = fusion

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        depth = max(top_k, FUSION_DEPTH)
        answers = [ranker.rank(queries, depth, filters) for ranker in self._rankers]
        return [
            self._fusion.fuse([ranked.rows for ranked in of_query], top_k) for of_query in zip(*answers, strict=True)
        ]
