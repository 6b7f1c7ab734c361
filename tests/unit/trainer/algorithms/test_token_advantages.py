"""Advantages of REINFORCE++, its baseline variant and RLOO against values computed manually."""

from collections.abc import Sequence

import numpy as np
import pytest

from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Outcome, Reward
from services.trainer.algorithms.base import UpdateSettings
from services.trainer.algorithms.gae import leave_one_out_rows, rows_with_returns
from services.trainer.algorithms.reinforce_plus_plus import (
    ReinforcePlusPlusBaseline,
    ReinforcePlusPlusBaselineSettings,
)
from services.trainer.learner.train_batch import RowKey, TrainRow
from services.trainer.rollouts.group import Group, Rollout
from services.trainer.rollouts.task_source import PromptGroup
from tests.fakes.scripted_worker import trajectory_of


def row(key: RowKey, behavior: Sequence[float], reference: Sequence[float] | None) -> TrainRow:
    """A prompt token, a sampled token, an observation, and the other sampled tokens."""
    mask = np.array([False, True, False, *[True] * (len(behavior) - 1)])

    def place(values: Sequence[float]) -> np.ndarray:
        full = np.full(len(mask), 9.0, dtype=np.float32)
        full[mask] = values
        return full

    zeros = np.zeros(len(mask), dtype=np.int64)
    return TrainRow(
        key, zeros, mask, place(behavior), zeros, zeros, np.zeros(len(mask), dtype=np.float32),
        reference_logprobs=None if reference is None else place(reference),
    )  # fmt: skip


def advantages(found: TrainRow) -> list[float]:
    assert not found.advantages[~found.mask].any()
    return found.advantages[found.mask].tolist()


def test_a_tokens_return_is_the_reward_less_the_kl_still_to_come_normalized_over_the_batch() -> None:
    # k1 is .5 and -1 in the first row and 0 in the second; at a coefficient of .1 the returns are
    # 1 + .1 - .05 = 1.05, 1 + .1 = 1.1, and 0
    rows = [row(RowKey(0, 0), [-1.0, -2.0], [-1.5, -1.0]), row(RowKey(1, 0), [-1.0], [-1.0])]
    first, second = rows_with_returns(rows, {(0, 0): 1.0, (1, 0): 0.0}, gamma=1.0, kl_coefficient=0.1, min_std=0.0)
    returns = np.array([1.05, 1.1, 0.0])
    expected = (returns - returns.mean()) / returns.std()
    assert [*advantages(first), *advantages(second)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert first.returns is None and first.values_old is None


def test_a_discount_counts_sampled_tokens_only() -> None:
    rows = [row(RowKey(0, 0), [-1.0, -1.0, -1.0], None), row(RowKey(1, 0), [-1.0], None)]
    first, _ = rows_with_returns(rows, {(0, 0): 1.0, (1, 0): 0.0}, gamma=0.5, kl_coefficient=0.0, min_std=0.0)
    returns = np.array([0.25, 0.5, 1.0, 0.0])
    assert advantages(first) == pytest.approx(((returns - returns.mean()) / returns.std())[:3].tolist(), abs=1e-5)


def test_equal_returns_of_a_batch_are_exactly_zero() -> None:
    rows = [row(RowKey(index, 0), [-1.0, -1.0], None) for index in range(3)]
    done = rows_with_returns(rows, {(i, 0): 0.7 for i in range(3)}, gamma=1.0, kl_coefficient=0.0, min_std=1e-4)
    assert np.abs(np.concatenate([found.advantages for found in done])).max() < 1e-6


def group_of(group_id: int, *outcomes: Outcome) -> Group:
    rollouts = [Rollout(index, trajectory_of("q"), outcome) for index, outcome in enumerate(outcomes)]
    return Group(PromptGroup(group_id, 0, Question("q", "text", ("a",))), rollouts)


def test_the_baseline_variant_centers_each_group_before_it_normalizes_the_batch() -> None:
    # .5, -.5 and 0, 0: mean 0, variance 1/8; a rollout without a reward is in no statistic
    algorithm = ReinforcePlusPlusBaseline(ReinforcePlusPlusBaselineSettings(), UpdateSettings())
    groups = [group_of(0, Reward(1.0), Reward(0.0), InfraFailure("down")), group_of(1, Reward(1.0), Reward(1.0))]
    found = algorithm.rows(groups, 1.0)
    done = rows_with_returns(found.rows, found.rewards, gamma=1.0, kl_coefficient=0.0, min_std=1e-4)
    assert [one.key[:2] for one in done] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [advantages(one)[0] for one in done] == pytest.approx([2**0.5, -(2**0.5), 0.0, 0.0], abs=1e-5)


def test_rloo_compares_rewards_less_the_kl_of_complete_rollouts() -> None:
    # the example of ``leave_one_out_rows``: KLs of 2 and 4 nats
    rows = [row(RowKey(0, 0), [0.0, 0.0], [-1.5, -0.5]), row(RowKey(0, 1), [0.0, 0.0, 0.0], [-1.0, -1.0, -2.0])]
    first, second = leave_one_out_rows(rows, {(0, 0): 1.0, (0, 1): 0.0}, 0.1)
    assert advantages(first) == pytest.approx([1.2] * 2)
    assert advantages(second) == pytest.approx([-1.2] * 3)


def test_rloo_counts_a_rollout_of_several_rows_once() -> None:
    parts = [row(RowKey(0, 0, 0), [0.0], [-1.5]), row(RowKey(0, 0, 1), [0.0], [-0.5])]
    other = row(RowKey(0, 1), [0.0, 0.0], [-2.0, -2.0])
    done = leave_one_out_rows([*parts, other], {(0, 0): 1.0, (0, 1): 0.0}, 0.1)
    assert [advantages(one)[0] for one in done] == pytest.approx([1.2, 1.2, -1.2])


def test_rloo_without_a_kl_needs_no_reference_and_skips_equal_rewards() -> None:
    rows = [row(RowKey(0, index), [-1.0], None) for index in range(2)]
    assert [advantages(one) for one in leave_one_out_rows(rows, {(0, 0): 0.5, (0, 1): 0.5}, 0.0)] == [[0.0], [0.0]]
    with pytest.raises(ValueError, match="reference_logprobs"):
        leave_one_out_rows(rows, {(0, 0): 0.5, (0, 1): 0.5}, 0.1)
