"""Penalizes good actions that became less likely (LLDS, 2512.04220).

Under GRPO the likelihood of good actions can fall while the reward still rises, and collapse follows. The penalty
applies only to actions with an advantage of at least 0, only if the log-probability of the entire action fell, and only
to the tokens whose own log-probability fell.
"""

import torch
from torch import Tensor


def preservation_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, actions: Tensor, threshold: float = 0.0
) -> Tensor:
    """Per-token penalty: the drop of each token's log-probability, in actions that dropped by more than ``threshold``.

    The penalty and the threshold are in nats.

    Shapes: all [N]; an action is a run of sampled tokens between two observations, ``actions`` its index.

    Args:
        logprobs: log pi of the sampled tokens; carries the gradient.
        old_logprobs: the same tokens under the old policy; detached.
    """
    fall = old_logprobs - logprobs
    count = int(actions.max()) + 1 if actions.numel() else 0
    action_fall = torch.zeros(count, dtype=fall.dtype, device=fall.device).index_add(0, actions, fall.detach())
    counted = (action_fall[actions] > threshold) & (advantages >= 0) & (fall.detach() > 0)
    return torch.where(counted, fall, torch.zeros_like(fall))
