"""REINFORCE with a baseline of the group, and RLOO (2402.14740), which also has the KL in the reward; without a clip.

Tokens that an older policy sampled are weighted by a capped, detached importance ratio.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from services.trainer.algorithms.base import Algorithm, AlgorithmBase, StepRows, UpdateReport, group_rows, update_policy
from services.trainer.algorithms.gae import leave_one_out_rows, reward_rows
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.aggregation import Aggregation
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.rollouts.group import Group

UNREAD = "Not read: there is no ratio to clip; another value than the default is refused."


class ReinforceLoss(LossSettings):
    """The policy's loss under REINFORCE."""

    policy: Literal["reinforce"] = Field(default="reinforce", description="Form of the policy loss.")  # pyright: ignore[reportIncompatibleVariableOverride]
    clip_low: NonNegativeFloat | None = Field(default=None, description=UNREAD)
    clip_high: NonNegativeFloat | None = Field(default=None, description=UNREAD)
    dual_clip: float | None = Field(default=None, gt=1, description=UNREAD)
    # The gradient of a rollout's log-probability is a sum over its tokens.
    aggregation: Aggregation | None = Field(
        default="seq_mean_token_sum", description="How token losses become one number."
    )


class ReinforceSettings(AlgorithmBase):
    """Advantages from a baseline of the group's rewards, or the rewards themselves."""

    kind: Literal["reinforce"] = "reinforce"
    advantage: Literal["leave_one_out", "mean_baseline", "reward"] = Field(
        default="leave_one_out", description="Baseline; reward: none."
    )
    loss: ReinforceLoss = Field(default=ReinforceLoss(), description="Loss of the policy.")

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term."""
        return self.loss.kl_coefficient > 0

    @property
    def compares_rollouts(self) -> bool:
        """Whether an advantage needs several rollouts of one question."""
        return self.advantage != "reward"


class Reinforce(Algorithm[ReinforceSettings]):
    """Policy gradient with a baseline."""

    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        # Groups without a signal stay in the denominators: the estimate is a mean over all rollouts, and leaving out
        # zeros would enlarge it.
        return StepRows(group_rows(groups, self.settings.advantage, 1.0, temperature, drop_idle=False))

    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        batch = TrainBatch.of(step_rows.rows, step)
        return update_policy(learners.policy, batch, self.settings.loss, self.update_settings)


class RlooSettings(AlgorithmBase):
    """A rollout is one action: its reward less its KL is compared with the other rollouts of its group."""

    credits_turns: ClassVar[bool] = False
    kind: Literal["rloo"] = "rloo"
    # TRL's default. The KL is a sum over the rollout, here of several turns: 0.05 of 10 nats is half a success.
    reward_kl_coefficient: NonNegativeFloat = Field(
        default=0.05, description="Penalty in the reward: times the KL of the complete rollout to the reference."
    )
    loss: ReinforceLoss = Field(default=ReinforceLoss(), description="Loss of the policy.")

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term in the loss or in the rewards."""
        return self.loss.kl_coefficient > 0 or self.reward_kl_coefficient > 0


class Rloo(Algorithm[RlooSettings]):
    """REINFORCE with a leave-one-out baseline and the KL in the reward."""

    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        return reward_rows(groups, temperature)

    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        rows = leave_one_out_rows(step_rows.rows, step_rows.rewards, self.settings.reward_kl_coefficient)
        return update_policy(learners.policy, TrainBatch.of(rows, step), self.settings.loss, self.update_settings)
