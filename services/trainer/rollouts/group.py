"""Defines rollouts with their outcomes, and groups: the rollouts of one question."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from searchrl.agent.types import StopReason
from searchrl.domain.outcome import NO_REWARD, Outcome
from searchrl.domain.trajectory import Trajectory
from services.trainer.data.task_source import PromptGroup
from services.trainer.losses.advantages import are_equal

CUT_SHORT = frozenset({StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW})


@dataclass(slots=True)
class Rollout:
    """One member of a group. ``trajectory`` is None if infrastructure failed before there was one."""

    rollout_index: int
    trajectory: Trajectory | None
    outcome: Outcome
    attempts: int = 1
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0

    @property
    def value(self) -> float | None:
        """The reward; None if there is none, which is not a reward of 0."""
        return None if isinstance(self.outcome, NO_REWARD) else self.outcome.value


@dataclass(slots=True)
class Group:
    """All rollouts of one drawn question, in the order of their indexes.

    ``masks_truncated`` leaves rollouts that were cut short out of the statistics.
    """

    prompt: PromptGroup
    rollouts: list[Rollout] = field(default_factory=list)
    masks_truncated: bool = True

    @property
    def rewards(self) -> list[float | None]:
        """One entry per rollout; None if it takes part in no statistic."""
        return [rollout.value if self.is_usable(rollout) else None for rollout in self.rollouts]

    def is_usable(self, rollout: Rollout) -> bool:
        """Whether the rollout counts in the group's statistics and in the loss."""
        if rollout.trajectory is None or rollout.value is None or not any(rollout.trajectory.tokens.mask):
            return False
        if rollout.trajectory.stop_reason == StopReason.TIME_LIMIT:
            return False  # seconds depend on the load of the services, so the policy must not be trained on them
        return not (self.masks_truncated and rollout.trajectory.stop_reason in CUT_SHORT)

    @property
    def usable(self) -> int:
        return sum(reward is not None for reward in self.rewards)

    @property
    def has_variance(self) -> bool:
        """Whether the rewards differ by more than rounding, so that the group has a learning signal."""
        return not are_equal([reward for reward in self.rewards if reward is not None])

    @property
    def oldest_version(self) -> int:
        """Version of the oldest sampled token among the usable rollouts."""
        return min(
            _oldest(rollout.trajectory) for rollout in self.rollouts if rollout.trajectory and self.is_usable(rollout)
        )


def _oldest(trajectory: Trajectory) -> int:
    tokens = trajectory.tokens
    return min(version for version, sampled in zip(tokens.versions, tokens.mask, strict=True) if sampled)


def sorted_by_id(groups: Sequence[Group]) -> list[Group]:
    """Return the groups in the order in which they are trained, independent of the order in which they finished."""
    return sorted(groups, key=lambda group: group.prompt.group_id)
