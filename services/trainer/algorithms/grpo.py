"""GRPO: a rollout's advantage is its reward compared with the other rollouts of the same question.

The defaults are DAPO's (2503.14476): GRPO (2402.03300) with a higher upper clip, a mean over tokens, without a KL term
and without groups of equal rewards. Dr. GRPO (2503.20783) is ``advantage: mean_baseline``. GSPO and CISPO are the same
algorithm with another ``loss.policy``.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from services.trainer.algorithms.base import Algorithm, AlgorithmBase, StepRows, UpdateReport, group_rows, update_policy
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.advantages import GroupAdvantage
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.rollouts.group import Group


class GrpoLoss(LossSettings):
    """The policy's loss under GRPO."""

    policy: Literal["ppo", "gspo", "cispo"] = Field(default="ppo", description="Form of the policy loss.")  # pyright: ignore[reportIncompatibleVariableOverride]


class GrpoSettings(AlgorithmBase):
    """Advantages from the statistics of a group."""

    kind: Literal["grpo"] = "grpo"
    advantage: GroupAdvantage = Field(default="group_std", description="Baseline and scale of a group.")
    scale: float = Field(default=1.0, gt=0, description="Factor of all advantages.")
    # DAPO's dynamic sampling draws other questions for such groups. Here the step gets smaller instead; the groups are
    # in no denominator, so the others keep the weight that they would have without them.
    drop_zero_variance: bool = Field(
        default=True, description="Groups without any advantage (equal rewards) leave the batch."
    )
    loss: GrpoLoss = Field(default=GrpoLoss(), description="Loss of the policy.")

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term."""
        return self.loss.kl_coefficient > 0


class Grpo(Algorithm[GrpoSettings]):
    """Group-relative policy optimization."""

    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        settings = self.settings
        return StepRows(
            group_rows(groups, settings.advantage, settings.scale, temperature, settings.drop_zero_variance)
        )

    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        batch = TrainBatch.of(step_rows.rows, step)
        return update_policy(learners.policy, batch, self.settings.loss, self.update_settings)
