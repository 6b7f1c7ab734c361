"""Defines rollouts with their outcomes, groups (the rollouts of one question), and the settings of both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from searchrl.agent.types import StopReason
from searchrl.domain.trajectory import NO_REWARD, Outcome, Trajectory
from searchrl.platform.settings import Section
from services.trainer.losses.advantages import are_equal
from services.trainer.rollouts.circuit_breaker import CircuitBreakerSettings
from services.trainer.rollouts.task_source import PromptGroup

# A limit on tokens ended these: the reward of an answer that was cut off says more about the limit than about the
# policy. Leaving them out is the overlong filtering of DAPO (2503.14476).
CUT_SHORT = frozenset({StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW})


class RolloutSettings(Section):
    """The size of a step's batch and the rules of its groups."""

    groups_per_step: PositiveInt = Field(default=24, description="Questions per training step.")
    group_size: PositiveInt = Field(default=8, description="Rollouts per question.")
    max_staleness: NonNegativeInt = Field(
        default=0, description="Policy versions a token may be older than the learner."
    )
    # Dropping throws away finished work, and a question whose searches are slow could be dropped again and again.
    stale_groups: Literal["wait", "drop"] = Field(
        default="wait",
        description="Groups that would exceed that: let the learner wait for them, or drop them and start them again.",
    )
    # The clients have retried a call that no service accepted, for about a second. These attempts, with pauses of 0.5
    # and 1 s, cover a little more; longer outages are the circuit breaker's.
    infra_retries: NonNegativeInt = Field(default=2, description="New attempts of a rollout whose services failed.")
    retry_pause_seconds: NonNegativeFloat = Field(
        default=0.5, description="Pause before the first of them; doubles each time."
    )
    # Two is the fewest that can be compared: the advantage of a single usable rollout in its group is 0.
    min_group: PositiveInt = Field(default=2, description="Usable rollouts below which a group is started again.")
    # Every new start follows a successful probe of the services. A group that still fails six times (one start and five
    # new ones) fails for a reason that waiting does not remove.
    max_restarts: NonNegativeInt = Field(
        default=5, description="New starts of a group that infrastructure left underfilled; then the run stops."
    )
    max_unscorable: float = Field(
        default=0.1, ge=0, le=1, description="Share of the questions that may be left out because they are refused."
    )
    # A series of refusals has another cause than its questions.
    unscorable_in_a_row: PositiveInt = Field(
        default=8, description="Groups in a row that cannot be scored, after which the run stops."
    )
    # No rollout ends during an outage, so this is also the longest outage that a run waits out.
    stall_seconds: NonNegativeFloat = Field(
        default=3600.0, description="Time without the end of any rollout after which the run stops; 0: never."
    )
    truncated: Literal["train", "mask"] = Field(
        default="mask",
        description="Rollouts cut by a token limit: train on them, or leave them out of every statistic.",
    )
    circuit_breaker: CircuitBreakerSettings = Field(
        default=CircuitBreakerSettings(), description="When to pause dispatch."
    )


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

    @property
    def turn_rewards(self) -> tuple[float | None, ...]:
        """The process rewards of the turns; empty if there are none."""
        return () if isinstance(self.outcome, NO_REWARD) else self.outcome.turns


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

    @property
    def turn_rewards(self) -> list[tuple[float | None, ...]]:
        """The process rewards of each rollout; empty for one that takes part in no statistic."""
        return [rollout.turn_rewards if self.is_usable(rollout) else () for rollout in self.rollouts]

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
        if not are_equal([reward for reward in self.rewards if reward is not None]):
            return True
        return not are_equal([reward for turns in self.turn_rewards for reward in turns if reward is not None])

    @property
    def successes(self) -> list[float]:
        """Success of each scored rollout, 0 to 1; empty if the reward measures none."""
        outcomes = [rollout.outcome for rollout in self.rollouts]
        scored = [outcome.parts for outcome in outcomes if not isinstance(outcome, NO_REWARD)]
        return [parts["correct"] for parts in scored if "correct" in parts]

    @property
    def oldest_version(self) -> int:
        """Version of the oldest sampled token among the usable rollouts."""
        return min(
            _find_oldest_version(rollout.trajectory)
            for rollout in self.rollouts
            if rollout.trajectory and self.is_usable(rollout)
        )

    @property
    def start_version(self) -> int:
        """The oldest version; a group without usable rollouts is never stale."""
        return self.oldest_version if self.usable else 1 << 62  # later than any version


def _find_oldest_version(trajectory: Trajectory) -> int:
    tokens = trajectory.tokens
    return min(compress(tokens.versions, tokens.mask))


# The order matters: sums of floating-point numbers depend on it in their last bits, and a run must repeat bit by bit.
def sorted_by_id(groups: Sequence[Group]) -> list[Group]:
    """Return the groups in the order in which they are trained, independent of the order in which they finished."""
    return sorted(groups, key=lambda group: group.prompt.group_id)
