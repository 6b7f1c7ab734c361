"""Policy losses of single tokens, from their log-probabilities and advantages.

Every function works on flat tensors of the N trainable tokens of a micro-batch. Prompts, observations and padding are
removed before a loss is computed, so no reduction can include them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.trainer.algorithms.importance import row_means, rows_in_bounds, token_weights
from services.trainer.algorithms.kl import LOG_RATIO_LIMIT, clamp_log_ratio, kl_loss_terms, kl_values
from services.trainer.algorithms.likelihood_preservation import llds_losses
from services.trainer.algorithms.settings import LossSettings

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
    # with old_policy proximal (decoupled PPO) the clipped ratio is relative to the policy before the step, and these
    # detached weights correct for the gap between the sampler and that policy; under REINFORCE, for all of the gap.
    newer = tokens.old_logprobs if settings.old_policy == "proximal" else tokens.logprobs.detach()
    weights = rows_in_bounds(newer, tokens.behavior_logprobs, tokens.rows, tokens.row_count, settings)
    sums = {"masked": float((weights == 0).sum())}
    if settings.old_policy == "proximal" or settings.policy == "reinforce":
        weights = weights * token_weights(newer, tokens.behavior_logprobs, settings.importance_ratio_cap)
    if settings.policy == "reinforce":
        return -weights * tokens.advantages * tokens.logprobs, sums
    log_ratio = tokens.logprobs - tokens.old_logprobs
    sums["clamped"] = float((log_ratio.detach().abs() > LOG_RATIO_LIMIT).sum())
    if settings.policy == "cispo":
        losses, clipped = cispo_losses(log_ratio, tokens.logprobs, tokens.advantages, settings)
    else:
        if settings.policy == "gspo":
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
    return -weight * advantages * logprobs, weight != ratio


def _drift_sums(tokens: PolicyTokens) -> Sums:
    drift = tokens.logprobs.detach() - tokens.behavior_logprobs
    limited = clamp_log_ratio(drift)
    good = tokens.advantages > 0
    sums = {
        "tokens": float(drift.numel()),
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
