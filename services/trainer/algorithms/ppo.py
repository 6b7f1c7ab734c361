"""PPO with a critic: the advantage of each token is estimated by GAE from the critic's values.

The defaults are PPO's clip (Schulman et al. 2017) and, as in s3 (2505.14146) and Search-R1 (2503.09516), gamma and
lambda of 1: a token's return is the reward of its rollout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from services.trainer.algorithms.base import (
    Algorithm,
    AlgorithmBase,
    CriticReport,
    StepRows,
    UpdateReport,
    UpdateSettings,
    train_in_mini_batches,
    update_policy,
)
from services.trainer.algorithms.gae import reward_rows, rows_with_gae
from services.trainer.learner.critic import Critic
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import TrainBatch, TrainRow
from services.trainer.losses.advantages import GaeSettings
from services.trainer.losses.policy_losses import LossSettings, ValueLossSettings
from services.trainer.rollouts.group import Group


class PpoLoss(LossSettings):
    """The policy's loss under PPO."""

    policy: Literal["ppo"] = Field(default="ppo", description="Form of the policy loss.")  # pyright: ignore[reportIncompatibleVariableOverride]
    clip_high: NonNegativeFloat | None = Field(default=0.2, description="Ratios above 1 + clip_high are clipped.")


class PpoSettings(AlgorithmBase):
    """Advantages under a critic, and the critic's training."""

    needs_critic: ClassVar[bool] = True
    kind: Literal["ppo"] = "ppo"
    loss: PpoLoss = Field(default=PpoLoss(), description="Loss of the policy.")
    gae: GaeSettings = Field(default=GaeSettings(), description="Advantages.")
    value_loss: ValueLossSettings = Field(default=ValueLossSettings(), description="Loss of the critic.")
    value_optim: OptimSettings = Field(default=OptimSettings(), description="Optimizer of the critic.")

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term in the loss or in the rewards."""
        return self.loss.kl_coefficient > 0 or self.gae.kl_coefficient > 0

    @property
    def compares_rollouts(self) -> bool:
        """Whether an advantage needs several rollouts of one question."""
        return False

    @property
    def optimizers(self) -> Mapping[str, OptimSettings]:
        """Optimizers besides the policy's, by the name of their setting."""
        return {"value_optim": self.value_optim}


class Ppo(Algorithm[PpoSettings]):
    """Proximal policy optimization with a critic."""

    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        return reward_rows(groups, temperature)

    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        """Estimate advantages with the critic's values before the update, then train critic and policy.

        Raises:
            ValueError: there is no critic.
        """
        critic = learners.critic
        if critic is None:
            raise ValueError("ppo needs a critic")
        rows = step_rows.rows
        filled = rows_with_gae(rows, step_rows.rewards, critic.values(rows), self.settings.gae, step_rows.turn_rewards)
        # The policy is trained on advantages of the values before the critic's update, so the order of the two updates
        # does not matter to it; the values after the update have already seen the rewards of these rollouts.
        batch = TrainBatch.of(filled, step)
        values = update_critic(critic, batch, self.settings, self.update_settings)
        policy = update_policy(learners.policy, batch, self.settings.loss, self.update_settings)
        return replace(policy, critic=CriticReport(values.loss, explained_variance(batch.rows), values.optim))


def update_critic(critic: Critic, batch: TrainBatch, settings: PpoSettings, update: UpdateSettings) -> UpdateReport:
    """Fit the critic to the returns in the batch's rows."""
    return train_in_mini_batches(
        batch,
        update,
        lambda rows: critic.forward_backward(rows, settings.value_loss),
        lambda: critic.optim_step(settings.value_optim),
    )


def explained_variance(rows: Sequence[TrainRow]) -> float:
    """How much of the returns' variance over the trainable tokens the critic's old values explain."""
    returns = np.concatenate([row.returns[row.mask] for row in rows if row.returns is not None])
    values = np.concatenate([row.values_old[row.mask] for row in rows if row.values_old is not None])
    variance = float(returns.var()) if len(returns) else 0.0
    return 1.0 - float((returns - values).var()) / variance if variance else 0.0
