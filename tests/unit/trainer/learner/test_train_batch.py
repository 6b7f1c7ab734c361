"""Training rows and batches: shapes, counts, order, padding and age.

Arrays of another length than the tokens are refused, a rollout of several rows counts once, rows are sorted by key
whatever their order of arrival, and a row is as old as its oldest token.
"""

from dataclasses import replace

import numpy as np
import pytest

from searchrl.domain.trajectory import TokenKind, TokenRecord, Trajectory
from services.trainer.learner.train_batch import (
    RowKey,
    ScoredTrajectory,
    TrainBatch,
    padding_row,
    row_from_record,
    rows_from_trajectories,
)
from tests.fakes.train_rows import random_rows


def record(turns: int = 1, version: int = 3) -> TokenRecord:
    tokens = TokenRecord()
    tokens.append_given([1, 2], TokenKind.PROMPT)
    for turn in range(turns):
        tokens.append_sampled([5, 6], [-0.5, -0.25], [version + turn] * 2, [TokenKind.QUERY] * 2)
        tokens.append_given([9], TokenKind.OBSERVATION)
    return tokens


def test_a_trajectory_becomes_a_row_whose_advantage_stands_at_sampled_tokens_only() -> None:
    (row,) = rows_from_trajectories([ScoredTrajectory(Trajectory("q", record()), 7, 2, 1.5)], temperature=0.6)
    assert row.key == RowKey(7, 2, 0)
    assert row.token_ids.tolist() == [1, 2, 5, 6, 9]
    assert row.advantages.tolist() == [0, 0, 1.5, 1.5, 0]
    assert row.behavior_logprobs.tolist() == [0, 0, -0.5, -0.25, 0]
    assert row.temperature == 0.6


def test_an_advantage_per_sampled_token_is_spread_over_the_mask() -> None:
    scored = ScoredTrajectory(Trajectory("q", record(turns=2)), 0, 0, [1.0, 2.0, 3.0, 4.0])
    (row,) = rows_from_trajectories([scored])
    assert row.advantages.tolist() == [0, 0, 1, 2, 0, 3, 4, 0]


@pytest.mark.parametrize("advantages", [[1.0, 2.0, 3.0], [1.0] * 5])
def test_a_wrong_number_of_advantages_is_refused(advantages: list[float]) -> None:
    with pytest.raises(ValueError, match="advantages than sampled tokens"):
        rows_from_trajectories([ScoredTrajectory(Trajectory("q", record(turns=2)), 0, 0, advantages)])


def test_a_rollout_of_three_parts_counts_as_one_rollout() -> None:
    parts = (record(), record(), record())
    rows = rows_from_trajectories([ScoredTrajectory(Trajectory("q"), 4, 1, 1.0, parts=parts)])
    assert [row.key for row in rows] == [(4, 1, 0), (4, 1, 1), (4, 1, 2)]
    denominators = TrainBatch.of(rows).denominators
    assert (denominators.rollouts, denominators.prompts, denominators.tokens) == (1, 1, 6)


def test_rows_are_sorted_by_key_whatever_order_they_arrive_in() -> None:
    rows = random_rows(9)
    shuffled = [rows[index] for index in np.random.default_rng(1).permutation(9)]
    assert [row.key for row in TrainBatch.of(shuffled).rows] == [row.key for row in TrainBatch.of(rows).rows]


def test_two_rows_with_one_key_are_refused() -> None:
    row = random_rows(1)[0]
    with pytest.raises(ValueError, match="key of another row"):
        TrainBatch.of([row, row])


def test_mini_batches_hold_every_row_once_and_normalize_by_their_own_counts() -> None:
    batch = TrainBatch.of(random_rows(7))
    parts = batch.split(3)
    assert sorted(row.key for part in parts for row in part.rows) == [row.key for row in batch.rows]
    assert [len(part.rows) for part in parts] == [3, 2, 2]
    assert sum(part.denominators.tokens for part in parts) == batch.denominators.tokens


def test_a_padding_row_has_no_weight_and_changes_no_count() -> None:
    rows = random_rows(3)
    assert TrainBatch.of([*rows, padding_row()]).denominators == TrainBatch.of(rows).denominators


def test_the_age_of_a_row_is_that_of_its_oldest_token() -> None:
    assert row_from_record(record(turns=2, version=3), RowKey(0, 0)).oldest_version == 3
    assert padding_row().oldest_version == -1


def test_arrays_of_another_length_are_refused() -> None:
    row = random_rows(1)[0]
    with pytest.raises(ValueError, match="one per token"):
        replace(row, advantages=row.advantages[:-1])


def test_a_trainable_first_token_is_refused() -> None:
    row = random_rows(1)[0]
    with pytest.raises(ValueError, match="no context"):
        replace(row, mask=np.ones(len(row), dtype=bool))


def test_temperature_zero_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="temperature"):
        replace(random_rows(1)[0], temperature=0.0)
