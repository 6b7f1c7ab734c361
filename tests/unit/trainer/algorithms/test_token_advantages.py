"""Advantages of REINFORCE++, its baseline variant and RLOO against values computed manually."""

from collections.abc import Sequence

import numpy as np
import pytest

from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Outcome, Reward, TokenKind, Trajectory
from services.trainer.algorithms.base import UpdateSettings, group_rows
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


def test_a_process_reward_is_earned_at_the_end_of_its_turn() -> None:
    # turns of one and two tokens; the first earns .25, the second .5, the rollout 1 at its last token
    rows = [row(RowKey(0, 0), [-1.0, -1.0, -1.0], None), row(RowKey(1, 0), [-1.0], None)]
    first, _ = rows_with_returns(
        rows, {(0, 0): 1.0, (1, 0): 0.0}, gamma=1.0, kl_coefficient=0.0, min_std=0.0,
        turn_rewards={(0, 0): (0.25, 0.5)},
    )  # fmt: skip
    returns = np.array([1.75, 1.5, 1.5, 0.0])
    assert advantages(first) == pytest.approx(((returns - returns.mean()) / returns.std())[:3].tolist(), abs=1e-5)


def two_turns() -> Trajectory:
    """Turns of two tokens and one, with an observation between them."""
    made = Trajectory("q")
    made.tokens.append_given([1, 2], TokenKind.PROMPT)
    for ids in ([3, 4], [5]):
        made.tokens.append_sampled(ids, [-0.5] * len(ids), [0] * len(ids), [int(TokenKind.ACTION)] * len(ids))
        made.tokens.append_given([6], TokenKind.OBSERVATION)
    return made


def group_with_turns(*outcomes: Reward) -> Group:
    rollouts = [Rollout(index, two_turns(), outcome) for index, outcome in enumerate(outcomes)]
    return Group(PromptGroup(0, 0, Question("q", "text", ("a",))), rollouts)


def test_in_a_group_the_advantages_of_turns_are_added_to_that_of_the_rollout() -> None:
    group = group_with_turns(Reward(1.0, turns=(1.0, 0.0)), Reward(0.0, turns=(0.0, None)))
    first, second = group_rows([group], "mean_baseline", 1.0, 1.0, True)
    assert advantages(first) == pytest.approx([0.5 + 1 / 3] * 2 + [0.5 - 1 / 3])
    assert advantages(second) == pytest.approx([-0.5 - 1 / 3] * 2 + [-0.5])
    plain, _ = group_rows([group], "mean_baseline", 1.0, 1.0, True, False)
    assert advantages(plain) == [0.5] * 3


def test_equal_rewards_with_different_process_rewards_have_a_signal() -> None:
    group = group_with_turns(Reward(1.0, turns=(1.0, None)), Reward(1.0, turns=(0.0, None)))
    assert group.has_variance
    assert [advantages(one) for one in group_rows([group], "mean_baseline", 1.0, 1.0, True)] == [
        [0.5, 0.5, 0.0],
        [-0.5, -0.5, 0.0],
    ]


def test_turns_that_cannot_be_told_apart_share_what_they_earned() -> None:
    group = group_with_turns(Reward(0.0, turns=(1.0, 0.0, 0.0)), Reward(0.0, turns=(0.0, 0.0, 0.0)))
    first, _ = group_rows([group], "reward", 1.0, 1.0, False)
    assert advantages(first) == [1.0] * 3
