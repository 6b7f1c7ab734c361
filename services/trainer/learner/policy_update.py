"""Updates of the policy and of the critic, composed of the learner's primitives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from services.trainer.learner.critic import Critic
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.learner.train_batch import FloatArray, TrainBatch, TrainRow
from services.trainer.losses.advantages import GaeSettings, Moments, masked_advantages, whiten
from services.trainer.losses.policy_losses import LossSettings, ValueLossSettings


class PolicyLearner(Protocol):
    """What an update needs of a learner; ``Learner`` and ``RayLearner`` provide it."""

    def forward_backward(self, batch: TrainBatch, loss: LossSettings) -> LossReport: ...
    def optim_step(self, settings: OptimSettings) -> OptimReport: ...
    def logprobs(self, rows: Sequence[TrainRow]) -> list[FloatArray]: ...


class UpdateSettings(BaseModel):
    """Passes, optimizer steps and losses of one update."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossSettings = Field(default=LossSettings(), description="Loss of the policy.")
    optim: OptimSettings = Field(default=OptimSettings(), description="Optimizer of the policy.")
    # More steps use a batch better and move the policy further from the one that sampled it.
    mini_batches: PositiveInt = Field(default=2, description="Optimizer steps per pass.")
    epochs: PositiveInt = Field(default=1, description="Passes over the batch.")
    gae: GaeSettings = Field(default=GaeSettings(), description="Advantages of PPO.")
    value_loss: ValueLossSettings = Field(default=ValueLossSettings(), description="Loss of PPO's critic.")
    value_optim: OptimSettings = Field(default=OptimSettings(), description="Optimizer of PPO's critic.")


@dataclass(frozen=True, slots=True)
class CriticReport:
    """Result of one update of PPO's critic.

    Attributes:
        loss: mean of its loss over mini-batches, and the sums over its tokens.
        explained_variance: 1 - Var(return - value) / Var(return) before the update: 1 is perfect, 0 no better than a
            constant.
    """

    loss: LossReport
    explained_variance: float
    optim: tuple[OptimReport, ...]


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Mean loss and sums over all mini-batches, and every optimizer step."""

    loss: LossReport
    optim: tuple[OptimReport, ...]
    critic: CriticReport | None = None


def update_policy(learner: PolicyLearner, batch: TrainBatch, settings: UpdateSettings) -> UpdateReport:
    """Train on the batch in mini-batches, each of which is one optimizer step.

    All mini-batches of all epochs measure their ratio against one old policy: the sampler, or with old_policy
    ``proximal`` the weights at the start of this call.
    """
    if settings.loss.old_policy == "proximal":
        # once, before the first step: computed later, the ratio would not show how far earlier mini-batches moved it
        arrays = learner.logprobs(batch.rows)
        batch = batch.with_rows([replace(r, proximal_logprobs=a) for r, a in zip(batch.rows, arrays, strict=True)])
    losses: list[LossReport] = []
    steps: list[OptimReport] = []
    for mini_batch in batch.split(settings.mini_batches) * settings.epochs:
        losses.append(learner.forward_backward(mini_batch, settings.loss))
        steps.append(learner.optim_step(settings.optim))
    return _report(losses, steps)


def update_critic(critic: Critic, batch: TrainBatch, settings: UpdateSettings) -> UpdateReport:
    """Fit the critic to the returns in the batch's rows."""
    losses: list[LossReport] = []
    steps: list[OptimReport] = []
    for mini_batch in batch.split(settings.mini_batches) * settings.epochs:
        losses.append(critic.forward_backward(mini_batch, settings.value_loss))
        steps.append(critic.optim_step(settings.value_optim))
    return _report(losses, steps)


def explained_variance(rows: Sequence[TrainRow]) -> float:
    """How much of the returns' variance over the trainable tokens the critic's old values explain."""
    returns = np.concatenate([row.returns[row.mask] for row in rows if row.returns is not None])
    values = np.concatenate([row.values_old[row.mask] for row in rows if row.values_old is not None])
    variance = float(returns.var()) if len(returns) else 0.0
    return 1.0 - float((returns - values).var()) / variance if variance else 0.0


def _report(losses: Sequence[LossReport], steps: Sequence[OptimReport]) -> UpdateReport:
    """Average the loss over mini-batches, so that it does not grow with their number; sums are added."""
    merged = LossReport.merge(losses)
    return UpdateReport(LossReport(merged.loss / max(1, len(losses)), merged.sums), tuple(steps))


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
    counted = [row for row in filled if row.weight]
    moments = Moments.of([row.advantages for row in counted], [row.mask for row in counted])
    whitened = [whiten(row.advantages, row.mask, moments, min_std=settings.min_std) for row in filled]
    return [replace(row, advantages=array.astype(np.float32)) for row, array in zip(filled, whitened, strict=True)]


def _episode(pairs: list[tuple[TrainRow, FloatArray]], reward: float, settings: GaeSettings) -> list[TrainRow]:
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
    if row.reference_logprobs is None:
        raise ValueError("a KL penalty in the reward needs reference_logprobs in every row")
    return row.behavior_logprobs - row.reference_logprobs
