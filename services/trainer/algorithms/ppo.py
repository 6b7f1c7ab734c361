"""PPO with a critic: the advantage of each token is estimated by GAE from the critic's values.

The defaults are PPO's clip (Schulman et al. 2017) and, as in s3 (2505.14146) and Search-R1 (2503.09516), gamma and
lambda of 1: a token's return is the reward of its rollout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
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
    usable_members,
)
from services.trainer.learner.critic import Critic
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import FloatArray, TrainBatch, TrainRow, rows_from_trajectories
from services.trainer.losses.advantages import GaeSettings, Moments, masked_advantages, whiten
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
        filled = rows_with_gae(rows, step_rows.rewards, critic.values(rows), self.settings.gae)
        # The policy is trained on advantages of the values before the critic's update, so the order of the two updates
        # does not matter to it; the values after the update have already seen the rewards of these rollouts.
        batch = TrainBatch.of(filled, step)
        values = update_critic(critic, batch, self.settings, self.update_settings)
        policy = update_policy(learners.policy, batch, self.settings.loss, self.update_settings)
        return replace(policy, critic=CriticReport(values.loss, explained_variance(batch.rows), values.optim))


def reward_rows(groups: Sequence[Group], temperature: float) -> StepRows:
    """Return one row per usable rollout without advantages, and the rewards by group and rollout."""
    scored = [member for group in groups for member in usable_members(group, [0.0] * len(group.rollouts))]
    rewards = {
        (group.prompt.group_id, rollout.rollout_index): reward
        for group in groups
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
        if reward is not None
    }
    return StepRows(rows_from_trajectories(scored, temperature), rewards)


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


def rows_with_gae(
    rows: Sequence[TrainRow],
    rewards: Mapping[tuple[int, int], float],
    values: Sequence[FloatArray],
    settings: GaeSettings,
) -> list[TrainRow]:
    """Fill advantages, returns and old values of PPO.

    The rows of one rollout are one episode, with its reward at its last trainable token. The positions of the mask are
    its time steps. Whitening uses the moments of all rows together, but of none with weight 0.

    Args:
        rewards: by (group_id, rollout_index).
        values: the critic's values before the update, one array per row.

    Raises:
        ValueError: a KL penalty without reference log-probabilities.
    """
    pairs = sorted(zip(rows, values, strict=True), key=lambda pair: pair[0].key)
    filled: list[TrainRow] = []
    for rollout, group in groupby(pairs, key=lambda pair: pair[0].key[:2]):
        filled.extend(_episode(list(group), rewards[rollout], settings))
    if not settings.whiten:
        return filled
    # Over the batch, not per rollout: with gamma and lambda 1 a token's advantage is the rollout's reward minus the
    # value, and subtracting the mean of each rollout would remove the reward.
    counted = [row for row in filled if row.weight]
    moments = Moments.of([row.advantages for row in counted], [row.mask for row in counted])
    whitened = [whiten(row.advantages, row.mask, moments, min_std=settings.min_std) for row in filled]
    return [replace(row, advantages=array.astype(np.float32)) for row, array in zip(filled, whitened, strict=True)]


def _episode(pairs: list[tuple[TrainRow, FloatArray]], reward: float, settings: GaeSettings) -> list[TrainRow]:
    # The rows of a rollout are joined in the order of their parts: GAE must run over the complete episode, because the
    # reward at its end is credited to the tokens of earlier parts, too.
    mask = np.concatenate([row.mask for row, _ in pairs])
    values = np.concatenate([array for _, array in pairs])
    penalties = None
    if settings.kl_coefficient:
        penalties = np.concatenate([-settings.kl_coefficient * _k1(row) for row, _ in pairs])
    advantages, returns = masked_advantages(
        mask, values, reward, gamma=settings.gamma, gae_lambda=settings.gae_lambda, token_rewards=penalties
    )
    ends = np.cumsum([len(row) for row, _ in pairs])
    return [
        replace(
            row,
            advantages=advantages[end - len(row) : end].astype(np.float32),
            returns=returns[end - len(row) : end].astype(np.float32),
            values_old=array,
        )
        for (row, array), end in zip(pairs, ends, strict=True)
    ]


def _k1(row: TrainRow) -> FloatArray:
    # Of the sampler, not of the current policy: a penalty in the reward belongs to the sampled tokens and is fixed
    # before the update, as the reward is.
    if row.reference_logprobs is None:
        raise ValueError("a KL penalty in the reward needs reference_logprobs in every row")
    return row.behavior_logprobs - row.reference_logprobs
