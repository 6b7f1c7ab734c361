"""Group advantages: only usable members count, and nothing is learned from a group without a comparison.

Masked truncated rollouts and members that infrastructure failed are in no group statistic; a single usable member and
rewards that differ by rounding only get an advantage of exactly 0.
"""

import numpy as np
import pytest

from services.trainer.algorithms.advantages import group_advantages


def test_group_mean_with_scale_is_twice_the_distance_to_the_mean() -> None:
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
def test_c11_a_single_usable_member_gets_advantage_zero(kind) -> None:
    assert group_advantages([1.0], kind).tolist() == [0.0]
    assert group_advantages([None, 1.0, None], kind).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["mean_baseline", "group_std", "leave_one_out"])
def test_c12_rewards_that_differ_by_rounding_only_give_exactly_zero(kind) -> None:
    assert group_advantages([0.1 + 0.2, 0.3, 0.3], kind).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["mean_baseline", "group_std", "leave_one_out"])
def test_c13_a_member_failed_by_infrastructure_leaves_the_statistics(kind) -> None:
    with_failure = group_advantages([1, 3, 2, None], kind)
    assert with_failure[:3].tolist() == group_advantages([1, 3, 2], kind).tolist()
    assert with_failure[3] == 0.0


def test_c9_a_masked_truncated_rollout_is_not_in_the_group_mean() -> None:
    assert group_advantages([1, 0, None]).tolist() == [0.5, -0.5, 0.0]


def test_a_group_without_usable_members_is_all_zero() -> None:
    assert group_advantages([None, None]).tolist() == [0.0, 0.0]
    assert group_advantages([]).shape == (0,)


def test_advantages_of_every_centered_kind_sum_to_zero() -> None:
    rewards = np.random.default_rng(0).normal(size=9).tolist()
    for kind in ("mean_baseline", "group_std", "leave_one_out"):
        assert group_advantages(rewards, kind).sum() == pytest.approx(0.0, abs=1e-12)
