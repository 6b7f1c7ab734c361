"""REINFORCE with a leave-one-out baseline (RLOO, 2402.14740): no ratio is clipped.

Tokens that an older policy sampled are weighted by a capped, detached importance ratio.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from services.trainer.algorithms.base import Algorithm, AlgorithmBase, StepRows, UpdateReport, group_rows, update_policy
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.aggregation import Aggregation
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.rollouts.group import Group


class ReinforceLoss(LossSettings):
    """The policy's loss under REINFORCE."""

    policy: Literal["reinforce"] = Field(default="reinforce", description="Form of the policy loss.")  # pyright: ignore[reportIncompatibleVariableOverride]
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
