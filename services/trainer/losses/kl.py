"""Estimators of the KL to the reference policy, as values and as losses.

Per token, with d = log pi - log reference at a sampled token: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman,
"Approximating KL Divergence", 2020). As *values* all three estimate the KL; as *losses* differentiated naively, k1 has
an expected gradient of zero and k3 a biased one. ``kl_loss_terms`` uses forms whose expected gradient is that of the
KL, both on-policy and off-policy.

Why these forms: let r = pi / sampler at a token and g = grad log pi, so that grad r = r g and grad d = g. The true
gradient of the KL is E_pi[d g] = E_sampler[r d g].

    k2   detached r x d^2 / 2     gradient r d g
    k3   r x (exp(-d) - 1 + d)    gradient r g (exp(-d) - 1 + d) + r (1 - exp(-d)) g = r d g
    k1   r x d                    gradient r d g + r g, and the mean of r g over the sampler is 0
"""

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
LOG_RATIO_LIMIT = 20.0
"""Nats. exp(20) is about 5e8, which stays finite in products with advantages; in float32 exp overflows above 88.

The metric ``clamped_fraction`` reports how many tokens of the policy loss exceed the limit.
"""


def clamp_log_ratio(log_ratio: Tensor) -> Tensor:
    """Clamp a log-ratio so that its exponential stays finite; beyond the limit the gradient is 0."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def kl_values(logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token value of an estimator, detached: for metrics and for rewards."""
    difference = clamp_log_ratio(logprobs.detach() - reference_logprobs)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    # expm1, because exp(-d) - 1 cancels where policy and reference are close: in float32, exp(1e-8) is exactly 1
    return torch.expm1(-difference) + difference


def kl_loss_terms(
    logprobs: Tensor, reference_logprobs: Tensor, sampler_logprobs: Tensor, estimator: KlEstimator
) -> Tensor:
    """Per-token loss whose expectation over the sampler has the gradient of KL(policy || reference).

    k2 is weighted by the detached ratio of policy to sampler; k1 and k3 by the ratio itself, gradient included.

    Args:
        logprobs: log pi of the sampled tokens, nats; carries the gradient.
        reference_logprobs: the same tokens under the frozen policy.
        sampler_logprobs: the same tokens under the policy that sampled them.
    """
    difference = clamp_log_ratio(logprobs - reference_logprobs)
    ratio = torch.exp(clamp_log_ratio(logprobs - sampler_logprobs))
    if estimator == "k2":
        return ratio.detach() * 0.5 * difference.square()
    if estimator == "k1":
        return ratio * difference
    return ratio * (torch.expm1(-difference) + difference)
