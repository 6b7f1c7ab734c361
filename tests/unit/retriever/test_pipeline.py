"""The stages of a search: first stages, and the fusion of several."""

from collections.abc import Mapping, Sequence

from services.retriever.pipeline import rank_and_fuse
from services.retriever.ranking import RankedRows


class FixedRanker:
    def __init__(self, rows: list[int]) -> None:
        self._rows = rows
        self.asked_for = 0

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        self.asked_for = top_k
        return [RankedRows(self._rows, [1.0] * len(self._rows)) for _ in queries]


def test_fused_first_stages_look_deeper_than_the_results_they_return() -> None:
    lexical, dense = FixedRanker([1, 2, 3]), FixedRanker([4, 5, 3])
    ranked = rank_and_fuse([lexical, dense], ["a", "b"], 1, {})
    assert [hits.rows for hits in ranked] == [[3], [3]]
    assert lexical.asked_for == dense.asked_for == 100


def test_a_single_first_stage_keeps_its_depth_and_scores() -> None:
    lexical = FixedRanker([2, 1])
    assert rank_and_fuse([lexical], ["a"], 2, {}) == [RankedRows([2, 1], [1.0, 1.0])]
    assert lexical.asked_for == 2
