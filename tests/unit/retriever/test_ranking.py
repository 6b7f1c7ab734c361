"""Reciprocal rank fusion."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retriever.ranking import ReciprocalRankFusion

rankings = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=12), min_size=1, max_size=4)


def test_a_row_in_both_rankings_beats_the_top_of_one() -> None:
    fused = ReciprocalRankFusion(k=60).fuse([[7, 3], [9, 3]], limit=3)
    # 3: 2/(60+2) = 0.0323; 7 and 9: 1/(60+1) = 0.0164, tie broken by row
    assert fused.rows == [3, 7, 9]
    assert fused.scores == pytest.approx([2 / 62, 1 / 61, 1 / 61])


def test_weights_favor_a_ranking() -> None:
    fused = ReciprocalRankFusion(weights=[1.0, 3.0]).fuse([[1], [2]], limit=2)
    assert fused.rows == [2, 1]


@given(rankings, st.integers(1, 20))
def test_scores_fall_and_no_row_comes_twice(parts: list[list[int]], limit: int) -> None:
    fused = ReciprocalRankFusion().fuse(parts, limit)
    assert fused.scores == sorted(fused.scores, reverse=True)
    assert len(set(fused.rows)) == len(fused.rows) <= limit
    assert set(fused.rows) <= {row for part in parts for row in part}


@given(rankings)
def test_the_order_of_the_rankings_does_not_matter(parts: list[list[int]]) -> None:
    forward = ReciprocalRankFusion().fuse(parts, 50)
    backward = ReciprocalRankFusion().fuse(parts[::-1], 50)
    assert forward.scores == pytest.approx(backward.scores)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_rejected(k: int) -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        ReciprocalRankFusion(k=k)
