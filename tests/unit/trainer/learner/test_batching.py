"""Packing into micro-batches and over ranks, as properties over random lengths.

Every row lands in exactly one micro-batch, every rank gets the same number of micro-batches, and fewer rows than ranks
are filled up with padding rows.
"""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.learner.batching import pack_for_ranks, pack_micro_batches, shard_rows
from services.trainer.learner.train_batch import PADDING_GROUP, RowKey, TrainRow, padding_row

lengths = st.lists(st.integers(min_value=2, max_value=80), max_size=40)


def rows_of(sizes: list[int]) -> list[TrainRow]:
    def row(index: int, size: int) -> TrainRow:
        ids, zeros = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.float32)
        return replace(
            padding_row(), key=RowKey(index, 0), token_ids=ids, mask=ids.astype(bool), behavior_logprobs=zeros,
            versions=ids, kinds=ids, advantages=zeros, proximal_logprobs=None, reference_logprobs=None,
            values_old=None, returns=None,
        )  # fmt: skip

    return [row(index, size) for index, size in enumerate(sizes)]


@given(lengths, st.integers(min_value=1, max_value=200))
def test_every_row_lands_in_exactly_one_micro_batch_within_the_budget(sizes: list[int], budget: int) -> None:
    packed = pack_micro_batches(rows_of(sizes), budget)
    assert sorted(row.key.group_id for micro in packed for row in micro) == list(range(len(sizes)))
    for micro in packed:
        rectangle = len(micro) * max(len(row) for row in micro)
        assert rectangle <= budget or len(micro) == 1


@given(lengths, st.integers(min_value=1, max_value=200), st.randoms())
def test_packing_does_not_depend_on_the_order_of_the_rows(sizes: list[int], budget: int, random) -> None:
    rows = rows_of(sizes)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert pack_micro_batches(shuffled, budget) == pack_micro_batches(rows, budget)


@given(lengths, st.integers(min_value=1, max_value=6), st.integers(min_value=1, max_value=200))
def test_every_rank_gets_the_same_number_of_micro_batches_and_every_row_once(sizes, ranks, budget) -> None:
    grid = pack_for_ranks(rows_of(sizes), ranks, budget)
    assert len(grid) == ranks
    assert len({len(column) for column in grid}) == 1
    group_ids = [row.key.group_id for column in grid for micro in column for row in micro]
    assert sorted(group_id for group_id in group_ids if group_id != PADDING_GROUP) == list(range(len(sizes)))


def test_fewer_rows_than_ranks_leave_the_other_ranks_with_padding() -> None:
    grid = pack_for_ranks(rows_of([5, 9]), 4, 100)
    kinds = [[row.key.group_id == PADDING_GROUP for micro in column for row in micro] for column in grid]
    assert sorted(kinds) == [[False], [False], [True], [True]]


def test_no_rows_give_no_micro_batches_on_any_rank() -> None:
    assert pack_for_ranks([], 3, 100) == [[], [], []]


def test_shares_are_balanced_by_length() -> None:
    shares = shard_rows(rows_of([40, 30, 20, 10]), 2)
    assert [sum(len(row) for row in share) for share in shares] == [50, 50]
