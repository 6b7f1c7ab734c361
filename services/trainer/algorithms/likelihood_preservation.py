"""Penalizes good actions that became less likely (LLDS, 2512.04220).

Under GRPO the likelihood of good actions can fall while the reward still rises, and collapse follows. The penalty
applies only to actions with an advantage of at least 0, only if the log-probability of the entire action fell, and only
to the tokens whose own log-probability fell.
"""

import torch
from torch import Tensor


def llds_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, actions: Tensor, threshold: float = 0.0
) -> Tensor:
    """Per-token penalty: the drop of each token's log-probability, in actions that dropped by more than ``threshold``.

    The penalty and the threshold are in nats.

    Shapes: all [N]; an action is a run of sampled tokens between two observations, ``actions`` its index.

    Args:
        logprobs: log pi of the sampled tokens; carries the gradient.
        old_logprobs: the same tokens under the old policy; detached.
    """
    logprob_drop = old_logprobs - logprobs
    count = int(actions.max()) + 1 if actions.numel() else 0
    action_drop = logprob_drop.new_zeros(count).index_add(0, actions, logprob_drop.detach())
    counted = (action_drop[actions] > threshold) & (advantages >= 0) & (logprob_drop.detach() > 0)
    return torch.where(counted, logprob_drop, torch.zeros_like(logprob_drop))
