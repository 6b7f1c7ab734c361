"""Losses of single tokens: the policy's from log-probabilities and advantages, the critic's from values and returns.

Every function works on flat tensors of the N trainable tokens of a micro-batch. Prompts, observations and padding are
removed before a loss is computed, so no reduction can include them.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)
from torch import Tensor

from searchrl.platform.settings import Section
from services.trainer.losses.aggregation import Aggregation
from services.trainer.losses.kl import LOG_RATIO_LIMIT, KlEstimator, clamp_log_ratio, kl_loss_terms, kl_values

PolicyLoss = Literal["ppo", "gspo", "cispo", "reinforce", "cross_entropy"]


def check_constant(aggregation: Aggregation | None, constant: float | None) -> None:
    """Raises:
    ValueError: the aggregation lacks its constant.
    """
    if aggregation == "seq_sum_const" and constant is None:
        raise ValueError(
            "aggregation seq_sum_const needs aggregation_constant, e.g. the largest number of action tokens"
        )


class LossSettings(Section):
    """Everything that turns log-probabilities and advantages into one number."""

    policy: PolicyLoss = Field(
        default="ppo", description="Form of the policy loss; cross_entropy reads advantages as weights."
    )
    clip_low: NonNegativeFloat | None = Field(
        default=None, description="Ratios below 1 - clip_low are clipped; None: 0.2, of gspo 0.0003."
    )
    clip_high: NonNegativeFloat | None = Field(
        default=None, description="Ratios above 1 + clip_high are clipped; None: 0.28, of gspo 0.0004."
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="Bound on the loss of bad tokens: at most dual_clip x |A| (verl: clip_ratio_c)."
    )
    aggregation: Aggregation | None = Field(
        default=None, description="How token losses become one number; None: token_mean, of gspo seq_mean_token_mean."
    )
    aggregation_constant: PositiveFloat | None = Field(default=None, description="Tokens per row in seq_sum_const.")
    old_policy: Literal["behavior", "proximal"] | None = Field(
        default=None,
        description="Old policy of the ratio; None: proximal if rollouts may be stale and an update has several "
        "optimizer steps, else behavior.",
    )
    # Truncated importance sampling (Ionides 2008): a bounded variance for some bias.
    importance_ratio_cap: PositiveFloat = Field(
        default=2.0,
        description="Cap of the per-token importance weight (old_policy proximal, reinforce); .inf: no cap.",
    )
    # The defaults of prime-rl (geo_mask_low and geo_mask_high of its LossConfig, in versions that bound the geometric
    # mean). A row beyond them was sampled by what is practically another policy: a factor of 10 is 2.3 nats in each of
    # its tokens. Where no row is, they change nothing.
    sequence_ratio_low: NonNegativeFloat = Field(
        default=0.1, description="Rows whose geometric mean ratio to the sampler is lower are masked."
    )
    sequence_ratio_high: PositiveFloat | None = Field(
        default=10.0, description="Rows whose geometric mean ratio to the sampler is higher are masked; None: no bound."
    )
    kl_coefficient: NonNegativeFloat = Field(default=0.0, description="Weight of the KL to the reference policy.")
    kl_estimator: KlEstimator = Field(default="k2", description="Estimator of that KL; each has the true gradient.")
    entropy_coefficient: float = Field(default=0.0, description="Weight of the entropy bonus.")
    llds_coefficient: NonNegativeFloat = Field(
        default=0.0, description="Weight of the penalty on good actions that became less likely."
    )
    llds_threshold: NonNegativeFloat = Field(default=0.0, description="Drop in nats per action that is free.")

    @model_validator(mode="after")
    def _check_constant(self) -> Self:
        check_constant(self.aggregation, self.aggregation_constant)
        return self

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        # a row that was sampled by the policy itself has a ratio of 1
        if self.sequence_ratio_low > 1 or (self.sequence_ratio_high or 1) < 1:
            raise ValueError(
                "sequence_ratio_low above 1 or sequence_ratio_high below 1 masks the rows that the policy itself "
                "sampled: nothing would be trained"
            )
        return self

    @property
    def clip_range(self) -> tuple[float, float]:
        """Smallest and largest ratio that is not clipped.

        The defaults for single tokens are DAPO's 0.2 and 0.28 (2503.14476). A mean over a sequence varies far less, so
        GSPO's paper (2507.18071) clips at 3e-4 and 4e-4.
        """
        low, high = (3e-4, 4e-4) if self.policy == "gspo" else (0.2, 0.28)
        return 1 - (low if self.clip_low is None else self.clip_low), 1 + (
            high if self.clip_high is None else self.clip_high
        )

    @property
    def reduction(self) -> Aggregation:
        """The aggregation in use."""
        return self.aggregation or ("seq_mean_token_mean" if self.policy == "gspo" else "token_mean")

    @property
    def uses_every_token(self) -> bool:
        """Whether tokens with advantage 0 have a gradient too."""
        return self.kl_coefficient > 0 or self.entropy_coefficient != 0 or self.llds_coefficient > 0


Sums = dict[str, float]


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """The trainable tokens of a micro-batch; every tensor has shape [N].

    Attributes:
        logprobs: log pi of the sampled tokens in nats; carries the gradient.
        behavior_logprobs: the same under the policy that sampled them.
        old_logprobs: the same under the old policy of the ratio: the sampler, or the policy before the step's first
            mini-batch.
        rows: index of each token's row, below ``row_count``.
        actions: index of each token's action, i.e. of its run of consecutive sampled tokens.
        entropy: entropy of each token's distribution; carries the gradient if the settings use it.
        reference_logprobs: the same under the frozen policy, if there is one.
    """

    logprobs: Tensor
    behavior_logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    rows: Tensor
    row_count: int
    actions: Tensor
    entropy: Tensor | None = None
    reference_logprobs: Tensor | None = None


def token_losses(tokens: PolicyTokens, settings: LossSettings) -> tuple[Tensor, Sums]:
    """Return the loss of every token, all terms included, and sums of metrics over the tokens.

    Raises:
        ValueError: a KL or entropy term is configured, but its input is missing.
    """
    # The regularizers below are added after the weights of ``_policy_losses``: a row that is masked because its ratio
    # is out of bounds loses its policy gradient, not its pull toward the reference.
    losses, sums = _policy_losses(tokens, settings)
    if settings.kl_coefficient:
        if tokens.reference_logprobs is None:
            raise ValueError("a KL term needs reference log-probabilities in every row")
        terms = kl_loss_terms(
            tokens.logprobs, tokens.reference_logprobs, tokens.behavior_logprobs, settings.kl_estimator
        )
        losses = losses + settings.kl_coefficient * terms
    if settings.entropy_coefficient:
        if tokens.entropy is None:
            raise ValueError("an entropy bonus needs the entropy of every token")
        losses = losses - settings.entropy_coefficient * tokens.entropy
    if settings.llds_coefficient:
        penalty = llds_losses(
            tokens.logprobs, tokens.old_logprobs, tokens.advantages, tokens.actions, settings.llds_threshold
        )
        losses = losses + settings.llds_coefficient * penalty
    if settings.policy == "cross_entropy":
        return losses, sums | {"tokens": float(losses.numel())}
    return losses, sums | _drift_sums(tokens)


def _policy_losses(tokens: PolicyTokens, settings: LossSettings) -> tuple[Tensor, Sums]:
    if settings.policy == "cross_entropy":
        return -tokens.advantages * tokens.logprobs, {}
    # With old_policy proximal (decoupled PPO, Hilton et al. 2021, 2110.00641) the clipped ratio is relative to the
    # policy before the step, and these detached weights correct for the gap between the sampler and that policy; under
    # REINFORCE, for all of the gap. Example: sampler 0.1, before the step 0.15, now 0.18: the weight is 0.15 / 0.1 =
    # 1.5, the clipped ratio 0.18 / 0.15 = 1.2, and their product the full ratio of 1.8.
    newer = tokens.old_logprobs if settings.old_policy == "proximal" else tokens.logprobs.detach()
    weights = rows_in_bounds(newer, tokens.behavior_logprobs, tokens.rows, tokens.row_count, settings)
    sums = {"masked": float((weights == 0).sum()), "capped": 0.0}
    if settings.old_policy == "proximal" or settings.policy == "reinforce":
        cap = settings.importance_ratio_cap
        weights = weights * token_weights(newer, tokens.behavior_logprobs, cap)
        sums["capped"] = float((newer.detach() - tokens.behavior_logprobs > math.log(cap)).sum())
    if settings.policy == "reinforce":
        return -weights * tokens.advantages * tokens.logprobs, sums
    log_ratio = tokens.logprobs - tokens.old_logprobs
    sums["clamped"] = float((log_ratio.detach().abs() > LOG_RATIO_LIMIT).sum())
    if settings.policy == "cispo":
        losses, clipped = cispo_losses(log_ratio, tokens.logprobs, tokens.advantages, settings)
    else:
        if settings.policy == "gspo":
            # The mean log-ratio of a row is the log of GSPO's ratio, the T-th root of the product over T tokens. Each
            # token gets it, and the mean over tokens of the default aggregation makes it one loss per rollout.
            log_ratio = row_means(log_ratio, tokens.rows, tokens.row_count)[tokens.rows]
        losses, clipped = ppo_losses(log_ratio, tokens.advantages, settings)
    sums["clipped"] = float(clipped.sum())
    return weights * losses, sums


def ppo_losses(log_ratio: Tensor, advantages: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7) with separate lower and upper bounds, optionally dual-clipped.

    Dual clip (Ye et al. 2020, eq. 5) bounds the loss of a bad token at ``dual_clip`` times |advantage|. With a
    log-ratio averaged over the row this is GSPO (2507.18071, eq. 5). Returns the losses and where the gradient was cut.
    """
    ratio = torch.exp(clamp_log_ratio(log_ratio))
    # The minimum is pessimistic: clipping may remove a gain, never a loss. With the bounds 0.8 and 1.28 and advantage
    # 1, ratio 1.5 counts as 1.28 and ratio 0.5 as 0.5.
    free = ratio * advantages
    trusted = ratio.clamp(*settings.clip_range) * advantages
    objective = torch.minimum(free, trusted)
    clipped = trusted < free
    if settings.dual_clip is not None:
        floor = settings.dual_clip * advantages
        bound = (advantages < 0) & (objective < floor)
        objective = torch.where(bound, floor, objective)
        clipped = clipped | bound
    return -objective, clipped.detach()


def cispo_losses(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """REINFORCE with the clipped ratio as a detached weight (CISPO, 2506.13585, eq. 4); no token loses its gradient."""
    ratio = torch.exp(clamp_log_ratio(log_ratio.detach()))
    weight = ratio.clamp(*settings.clip_range)
    # "clipped" counts weights that were changed; unlike in PPO, these tokens still move the policy
    return -weight * advantages * logprobs, weight != ratio


def _drift_sums(tokens: PolicyTokens) -> Sums:
    drift = tokens.logprobs.detach() - tokens.behavior_logprobs
    limited = clamp_log_ratio(drift)
    good = tokens.advantages > 0
    sums = {
        "tokens": float(drift.numel()),
        # k3 of KL(sampler || policy), whose d is the negative of this one: the tokens come from the sampler
        "mismatch_kl": float((torch.expm1(limited) - limited).sum()),
        "abs_logprob_delta": float(drift.abs().sum()),
        "ratio": float(torch.exp(limited).sum()),
        "good_tokens": float(good.sum()),
        "logprob_drop": float((-drift[good]).sum()),
    }
    if tokens.entropy is not None:
        sums["entropy"] = float(tokens.entropy.detach().sum())
    if tokens.reference_logprobs is not None:
        sums["kl_reference"] = float(kl_values(tokens.logprobs, tokens.reference_logprobs, "k3").sum())
    return sums


def row_means(values: Tensor, rows: Tensor, row_count: int) -> Tensor:
    """Mean per row of a flat tensor of trainable tokens; 0 for rows without tokens. Shapes: [N], [N] -> [row_count]."""
    zeros = torch.zeros(row_count, dtype=values.dtype, device=values.device)
    totals, counts = zeros.index_add(0, rows, values), zeros.index_add(0, rows, torch.ones_like(values))
    return totals / counts.clamp(min=1)


def token_weights(newer: Tensor, behavior: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(newer / behavior, cap), detached; an infinite cap truncates nothing."""
    return torch.exp(clamp_log_ratio(newer.detach() - behavior)).clamp(max=cap)


def rows_in_bounds(newer: Tensor, behavior: Tensor, rows: Tensor, row_count: int, settings: LossSettings) -> Tensor:
    """1.0 for tokens of rows whose geometric mean ratio lies within the settings' bounds, else 0.0. Shape: [N].

    The geometric mean does not grow with the number of tokens, as the product of the ratios does.
    """
    if settings.sequence_ratio_high is None and settings.sequence_ratio_low == 0.0:
        return torch.ones_like(behavior)
    ratios = torch.exp(clamp_log_ratio(row_means(newer.detach() - behavior, rows, row_count)))
    upper = float("inf") if settings.sequence_ratio_high is None else settings.sequence_ratio_high
    return ((ratios >= settings.sequence_ratio_low) & (ratios <= upper)).to(behavior.dtype)[rows]


def llds_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, actions: Tensor, threshold: float = 0.0
) -> Tensor:
    """Penalty on good actions that became less likely (LLDS, 2512.04220): each token's drop of log-probability.

    Under GRPO the likelihood of good actions can fall while the reward still rises, and collapse follows. The penalty
    applies only to actions with an advantage of at least 0, only if the log-probability of the entire action dropped by
    more than ``threshold`` nats, and only to the tokens whose own log-probability dropped.

    Shapes: all [N]; an action is a run of sampled tokens between two observations, ``actions`` its index.

    Args:
        logprobs: log pi of the sampled tokens; carries the gradient.
        old_logprobs: the same tokens under the old policy; detached.
    """
    # The three conditions are detached: they select tokens, and only the selected drops carry a gradient.
    logprob_drop = old_logprobs - logprobs
    count = int(actions.max()) + 1 if actions.numel() else 0
    action_drop = logprob_drop.new_zeros(count).index_add(0, actions, logprob_drop.detach())
    counted = (action_drop[actions] > threshold) & (advantages >= 0) & (logprob_drop.detach() > 0)
    return torch.where(counted, logprob_drop, torch.zeros_like(logprob_drop))


class ValueLossSettings(Section):
    """The critic's regression toward returns."""

    clip: PositiveFloat | None = Field(
        default=0.2, description="Largest trusted move away from the old value; None: no clip."
    )
    coefficient: PositiveFloat = Field(default=0.5, description="Weight of the squared error.")
    aggregation: Aggregation = Field(default="token_mean", description="How token losses become one number.")
    aggregation_constant: PositiveFloat | None = Field(default=None, description="Tokens per row in seq_sum_const.")

    @model_validator(mode="after")
    def _check_constant(self) -> Self:
        check_constant(self.aggregation, self.aggregation_constant)
        return self


def value_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, settings: ValueLossSettings
) -> tuple[Tensor, Tensor]:
    """The larger of two squared errors to the return: of the value, and of the value clipped around the old one.

    This is the value loss of OpenAI's PPO2: moving further than ``clip`` from the old value never lowers the loss.

    Shapes: all [N], trainable tokens only.

    Returns:
        The losses times the settings' coefficient, and where the clipped branch was the larger.
    """
    error = (values - returns).square()
    if settings.clip is None:
        return settings.coefficient * error, torch.zeros_like(error, dtype=torch.bool)
    trusted = old_values + (values - old_values).clamp(-settings.clip, settings.clip)
    clipped_error = (trusted - returns).square()
    return settings.coefficient * torch.maximum(error, clipped_error), (clipped_error > error).detach()
