"""REINFORCE++ (2501.03262): PPO's clipped loss without a critic, on advantages that are normalized over the batch.

Plain REINFORCE++ compares nothing within a group and has the KL in the reward. Its baseline variant first subtracts the
mean reward of the group, and has the KL in the loss. The KL coefficients are those of OpenRLHF's scripts.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from services.trainer.algorithms.base import Algorithm, AlgorithmBase, StepRows, UpdateReport, update_policy
from services.trainer.algorithms.gae import reward_rows, rows_with_returns
from services.trainer.algorithms.ppo import PpoLoss
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.advantages import group_advantages
from services.trainer.losses.kl import KlEstimator
from services.trainer.rollouts.group import Group


class NormalizedSettings(AlgorithmBase):
    """What both variants have in common."""

    loss: PpoLoss = Field(default=PpoLoss(), description="Loss of the policy.")
    # OpenRLHF bounds the variance by 1e-8
    min_std: NonNegativeFloat = Field(
        default=1e-4, description="The normalization over the batch never divides by less."
    )

    @property
    def normalizes_batch(self) -> bool:
        """Whether an advantage needs several rollouts in a step."""
        return True


class ReinforcePlusPlusSettings(NormalizedSettings):
    """Advantages are the rewards less the KL that is still to come, normalized over the batch."""

    kind: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount per trainable token.")
    reward_kl_coefficient: NonNegativeFloat = Field(
        default=1e-4, description="Penalty in the reward of each token: times k1 to the reference."
    )

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term in the loss or in the rewards."""
        return self.loss.kl_coefficient > 0 or self.reward_kl_coefficient > 0

    @property
    def compares_rollouts(self) -> bool:
        """Whether an advantage needs several rollouts of one question."""
        return False


class BaselineLoss(PpoLoss):
    """The policy's loss with a KL term by default."""

    kl_coefficient: NonNegativeFloat = Field(default=1e-5, description="Weight of the KL to the reference policy.")
    kl_estimator: KlEstimator = Field(default="k2", description="Estimator of that KL; each has the true gradient.")


class ReinforcePlusPlusBaselineSettings(NormalizedSettings):
    """Advantages are the rewards less the mean of their group, normalized over the batch."""

    credits_turns: ClassVar[bool] = False
    kind: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    loss: BaselineLoss = Field(default=BaselineLoss(), description="Loss of the policy.")  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term."""
        return self.loss.kl_coefficient > 0


class ReinforcePlusPlus(Algorithm[ReinforcePlusPlusSettings]):
    """REINFORCE with PPO's clip and normalized returns."""

    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        return reward_rows(groups, temperature)

    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        settings = self.settings
        rows = rows_with_returns(
            step_rows.rows,
            step_rows.rewards,
            gamma=settings.gamma,
            kl_coefficient=settings.reward_kl_coefficient,
            min_std=settings.min_std,
            turn_rewards=step_rows.turn_rewards,
        )
        return update_policy(learners.policy, TrainBatch.of(rows, step), settings.loss, self.update_settings)


class ReinforcePlusPlusBaseline(Algorithm[ReinforcePlusPlusBaselineSettings]):
    """REINFORCE++ on the distance to the mean of the group."""

    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        # A group of equal rewards stays: it counts in the statistics of the batch, as in the published code.
        centered = {
            (group.prompt.group_id, rollout.rollout_index): advantage
            for group in groups
            for rollout, advantage in zip(
                group.rollouts, group_advantages(group.rewards, "mean_baseline").tolist(), strict=True
            )
        }
        return StepRows(reward_rows(groups, temperature).rows, centered)

    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        settings = self.settings
        rows = rows_with_returns(
            step_rows.rows, step_rows.rewards, gamma=1.0, kl_coefficient=0.0, min_std=settings.min_std
        )
        return update_policy(learners.policy, TrainBatch.of(rows, step), settings.loss, self.update_settings)
