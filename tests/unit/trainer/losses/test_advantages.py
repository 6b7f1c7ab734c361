"""Group advantages: only usable members count, and nothing is learned from a group without a comparison.

Masked truncated rollouts and members that infrastructure failed are in no group statistic; a single usable member and
rewards that differ by rounding only get an advantage of exactly 0.
"""

import numpy as np
import pytest

from services.trainer.losses.advantages import (
    Moments,
    generalized_advantages,
    group_advantages,
    masked_advantages,
    process_advantages,
    whiten,
)


def test_mean_baseline_with_scale_is_twice_the_distance_to_the_mean() -> None:
    # mean of 1, 0, 0, 1 is 0.5; the small world's scale is 2
    assert group_advantages([1, 0, 0, 1], "mean_baseline", scale=2.0).tolist() == [1.0, -1.0, -1.0, 1.0]


def test_normalized_advantages_divide_by_the_sample_standard_deviation() -> None:
    # 1, 2, 3: mean 2, sample standard deviation 1
    assert group_advantages([1, 2, 3], "group_std").tolist() == [-1.0, 0.0, 1.0]


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    # 3 against (1 + 2) / 2, 1 against (3 + 2) / 2, 2 against (3 + 1) / 2
    assert group_advantages([3, 1, 2], "leave_one_out").tolist() == pytest.approx([1.5, -1.5, 0.0])


def test_reward_kind_returns_the_rewards_themselves() -> None:
    assert group_advantages([0.5, None, -1], "reward").tolist() == [0.5, 0.0, -1.0]


@pytest.mark.parametrize("kind", ["mean_baseline", "group_std", "leave_one_out"])
def test_a_single_usable_member_gets_advantage_zero(kind) -> None:
    assert group_advantages([1.0], kind).tolist() == [0.0]
    assert group_advantages([None, 1.0, None], kind).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["mean_baseline", "group_std", "leave_one_out"])
def test_rewards_that_differ_by_rounding_only_give_exactly_zero(kind) -> None:
    assert group_advantages([0.1 + 0.2, 0.3, 0.3], kind).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["mean_baseline", "group_std", "leave_one_out"])
def test_a_member_failed_by_infrastructure_leaves_the_statistics(kind) -> None:
    with_failure = group_advantages([1, 3, 2, None], kind)
    assert with_failure[:3].tolist() == group_advantages([1, 3, 2], kind).tolist()
    assert with_failure[3] == 0.0


def test_a_masked_truncated_rollout_is_not_in_the_group_mean() -> None:
    assert group_advantages([1, 0, None]).tolist() == [0.5, -0.5, 0.0]


def test_a_group_without_usable_members_is_all_zero() -> None:
    assert group_advantages([None, None]).tolist() == [0.0, 0.0]
    assert group_advantages([]).shape == (0,)


def test_advantages_of_every_centered_kind_sum_to_zero() -> None:
    rewards = np.random.default_rng(0).normal(size=9).tolist()
    for kind in ("mean_baseline", "group_std", "leave_one_out"):
        assert group_advantages(rewards, kind).sum() == pytest.approx(0.0, abs=1e-12)


def test_process_rewards_are_compared_over_all_turns_and_summed_over_the_following_ones() -> None:
    # 1, 0 and 0 have the mean 1/3; the turn without a reward is in no statistic
    found = process_advantages([(1.0, 0.0), (0.0, None)], "mean_baseline")
    assert found == [pytest.approx([1 / 3, -1 / 3]), pytest.approx([-1 / 3, 0.0])]
    # 2, 0, 1: mean 1, sample standard deviation 1
    assert process_advantages([(2.0, 0.0), (1.0,)], "group_std") == [[0.0, -1.0], [0.0]]
    assert process_advantages([(2.0, 0.0), (1.0,)], "reward", scale=2.0) == [[4.0, 0.0], [2.0]]


def test_equal_process_rewards_and_none_at_all_have_no_advantage() -> None:
    assert process_advantages([(0.5,), (0.5, None)], "group_std") == [[0.0], [0.0, 0.0]]
    assert process_advantages([(), ()]) == [[], []]


VALUES = np.array([0.5, 0.2, 0.4])


def row_with_gaps(gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Three trainable tokens with ``gap`` observation tokens of value 100 in the middle and at the end."""
    mask = np.array([False, True, *[False] * gap, True, True, *[False] * gap])
    values = np.full(len(mask), 100.0)
    values[mask] = VALUES
    return mask, values


def test_two_steps_computed_manually() -> None:
    # gamma .9, lambda .5, rewards 0, 1, values .5, .2:
    # last: 1 - .2 = .8; first: 0 + .9 * .2 - .5 = -.32, plus .45 * .8 = .36 -> .04
    advantages, returns = generalized_advantages(np.array([0.0, 1.0]), np.array([0.5, 0.2]), 0.9, 0.5)
    assert advantages.tolist() == pytest.approx([0.04, 0.8])
    assert returns.tolist() == pytest.approx([0.54, 1.0])


def test_with_gamma_and_lambda_one_the_return_of_every_token_is_the_reward() -> None:
    mask, values = row_with_gaps(2)
    advantages, returns = masked_advantages(mask, values, 3.0)
    assert returns[mask].tolist() == pytest.approx([3.0, 3.0, 3.0])
    assert advantages[mask].tolist() == pytest.approx((3.0 - VALUES).tolist())


@pytest.mark.parametrize("gap", [1, 50])
def test_observation_tokens_do_not_change_the_advantages(gap: int) -> None:
    plain_mask, plain_values = row_with_gaps(0)
    expected, _ = masked_advantages(plain_mask, plain_values, 1.0, gamma=0.9, gae_lambda=0.9)
    mask, values = row_with_gaps(gap)
    advantages, returns = masked_advantages(mask, values, 1.0, gamma=0.9, gae_lambda=0.9)
    assert advantages[mask].tolist() == expected[plain_mask].tolist()
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_the_reward_comes_at_the_last_trainable_token_even_if_the_row_ends_in_an_observation() -> None:
    mask = np.array([False, True, True, False, False])
    advantages, _ = masked_advantages(mask, np.zeros(5), 1.0, gamma=1.0, gae_lambda=0.0)
    assert advantages.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_token_rewards_are_added_at_their_own_tokens_and_only_inside_the_mask() -> None:
    mask = np.array([False, True, False, True])
    penalties = np.array([9.0, -0.1, 9.0, -0.2])
    advantages, _ = masked_advantages(mask, np.zeros(4), 1.0, gamma=1.0, gae_lambda=0.0, token_rewards=penalties)
    assert advantages.tolist() == pytest.approx([0.0, -0.1, 0.0, 0.8])


def test_a_row_without_trainable_tokens_has_no_advantages() -> None:
    advantages, returns = masked_advantages(np.zeros(3, dtype=bool), np.ones(3), 1.0)
    assert advantages.tolist() == returns.tolist() == [0.0, 0.0, 0.0]


def test_statistics_ignore_masked_values() -> None:
    arrays, masks = (
        [np.array([1.0, 100.0, 3.0]), np.array([100.0, 5.0])],
        [
            np.array([True, False, True]),
            np.array([False, True]),
        ],
    )
    moments = Moments.of(arrays, masks)
    # 1, 3, 5: mean 3, population variance 8 / 3
    assert (moments.count, moments.mean) == (3.0, 3.0)
    assert moments.variance == pytest.approx(8 / 3)
    assert whiten(arrays[0], masks[0], moments).tolist() == pytest.approx([-2 / (8 / 3) ** 0.5, 0.0, 0.0], abs=1e-6)


def test_a_batch_of_almost_equal_advantages_is_not_blown_up_to_unit_variance() -> None:
    noise, mask = np.array([0.001, -0.001]), np.array([True, True])
    moments = Moments.of([noise], [mask])
    assert whiten(noise, mask, moments, min_std=0.1).tolist() == pytest.approx([0.01, -0.01])
    assert abs(whiten(noise, mask, moments)).min() > 0.9


def test_an_empty_batch_has_moments_without_dividing_by_zero() -> None:
    assert Moments.of([], []) == Moments(0.0, 0.0, 0.0)
