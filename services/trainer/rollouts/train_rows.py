"""Turns finished groups into the rows of a training batch."""

from collections.abc import Sequence

from services.trainer.learner.train_batch import ScoredTrajectory, TrainRow, rows_from_trajectories
from services.trainer.losses.advantages import GroupAdvantage, group_advantages
from services.trainer.rollouts.group import Group

Rewards = dict[tuple[int, int], float]


def group_rows(
    groups: Sequence[Group], kind: GroupAdvantage, scale: float, temperature: float, drop_idle: bool
) -> list[TrainRow]:
    """Return one row per usable rollout, with its advantage in its group; for GRPO and its variants.

    Rollouts that failed by infrastructure or are masked have no row and are in no statistic. A group whose advantages
    are all 0 has no learning signal: its rewards are equal or, with kind ``reward``, all 0. With ``drop_idle`` it is
    left out of the loss's denominator, too.
    """
    scored: list[ScoredTrajectory] = []
    for group in groups:
        advantages = group_advantages(group.rewards, kind, scale)
        if drop_idle and not advantages.any():
            continue
        scored.extend(_members(group, advantages.tolist()))
    return rows_from_trajectories(scored, temperature)


def reward_rows(groups: Sequence[Group], temperature: float) -> tuple[list[TrainRow], Rewards]:
    """Return one row per usable rollout without advantages, and the rewards by group and index; for PPO's critic."""
    scored = [member for group in groups for member in _members(group, [0.0] * len(group.rollouts))]
    rewards = {
        (group.prompt.group_id, rollout.rollout_index): reward
        for group in groups
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
        if reward is not None
    }
    return rows_from_trajectories(scored, temperature), rewards


def _members(group: Group, advantages: Sequence[float]) -> list[ScoredTrajectory]:
    return [
        ScoredTrajectory(rollout.trajectory, group.prompt.group_id, rollout.rollout_index, advantage)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True)
        if rollout.trajectory is not None and group.is_usable(rollout)
    ]
