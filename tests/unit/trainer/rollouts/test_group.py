"""The members of a group that count for its advantages and its rows.

A member that infrastructure failed is in no statistic and has no row, a truncated one is masked by default, and a group
without a comparison teaches nothing.
"""

import pytest

from searchrl.agent.types import StopReason
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Outcome, PolicyFailure, Reward
from services.trainer.algorithms.base import group_rows
from services.trainer.algorithms.gae import reward_rows
from services.trainer.rollouts.group import Group, Rollout
from services.trainer.rollouts.task_source import PromptGroup
from tests.fakes.scripted_worker import trajectory_of

PROMPT = PromptGroup(4, 0, Question("q", "text", ("a",)))


def group_of(*outcomes: Outcome, stops: dict[int, str] | None = None, masks: bool = True) -> Group:
    rollouts = [
        Rollout(index, trajectory_of("q", stop_reason=(stops or {}).get(index, "completed")), outcome)
        for index, outcome in enumerate(outcomes)
    ]
    return Group(PROMPT, rollouts, masks)


def advantages_of(group: Group, scale: float = 1.0, drop: bool = True) -> dict[int, float]:
    rows = group_rows([group], "mean_baseline", scale, 1.0, drop)
    return {row.key.rollout_index: float(row.advantages[row.mask][0]) for row in rows}


def test_a_failed_member_is_in_no_statistic_and_has_no_row() -> None:
    group = group_of(Reward(1.0), Reward(3.0), Reward(2.0), InfraFailure("down"))
    assert advantages_of(group) == {0: -1.0, 1: 1.0, 2: 0.0}


def test_a_truncated_member_is_masked_by_default_and_trained_on_demand() -> None:
    cut = {2: StopReason.TRUNCATED.value}
    outcomes = (Reward(1.0), Reward(0.0), PolicyFailure(-0.3, "truncated"))
    assert advantages_of(group_of(*outcomes, stops=cut)) == {0: 0.5, 1: -0.5}
    trained = advantages_of(group_of(*outcomes, stops=cut, masks=False))
    assert trained == pytest.approx({0: 23 / 30, 1: -7 / 30, 2: -16 / 30})  # the mean is 0.7 / 3


def test_a_policy_failure_counts_with_its_value() -> None:
    assert advantages_of(group_of(Reward(1.0), PolicyFailure(-1.0, "malformed")), scale=2.0) == {0: 2.0, 1: -2.0}


def test_a_single_usable_member_and_equal_rewards_have_advantage_zero() -> None:
    assert advantages_of(group_of(Reward(1.0), InfraFailure("down")), drop=False) == {0: 0.0}
    assert advantages_of(group_of(Reward(0.3), Reward(0.3)), drop=False) == {0: 0.0, 1: 0.0}
    assert advantages_of(group_of(Reward(0.3), Reward(0.3))) == {}


def test_rewards_that_differ_by_rounding_are_equal_for_statistics_and_for_the_batch() -> None:
    group = group_of(Reward(0.9), Reward(0.9 + 1e-7))
    assert not group.has_variance
    assert advantages_of(group) == {}
    assert group_of(Reward(0.9), Reward(0.91)).has_variance


def test_without_a_comparison_equal_rewards_have_advantages() -> None:
    def rows(*rewards: float) -> int:
        return len(group_rows([group_of(*map(Reward, rewards))], "reward", 1.0, 1.0, True))

    assert (rows(0.5, 0.5), rows(0.0, 0.0)) == (2, 0)


@pytest.mark.parametrize("masks", [True, False])
def test_a_rollout_that_slow_services_ended_is_never_trained(masks: bool) -> None:
    slow = {1: StopReason.TIME_LIMIT.value}
    group = group_of(Reward(1.0), PolicyFailure(0.0, "time_limit"), Reward(0.0), stops=slow, masks=masks)
    assert advantages_of(group) == {0: 0.5, 2: -0.5}


def test_rows_for_a_critic_carry_rewards_by_group_and_rollout() -> None:
    found = reward_rows([group_of(Reward(1.0), InfraFailure("down"), Reward(0.5))], 1.0)
    assert found.rewards == {(4, 0): 1.0, (4, 2): 0.5}
    assert [row.key.rollout_index for row in found.rows] == [0, 2]
