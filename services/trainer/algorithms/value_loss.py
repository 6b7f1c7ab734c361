"""What is the critic's loss at each trainable token?"""

import torch
from torch import Tensor

from services.trainer.algorithms.settings import ValueLossSettings


def value_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, settings: ValueLossSettings
) -> tuple[Tensor, Tensor]:
    """Squared error to the return, not better than that of a value clipped around the old one (PPO2's value loss).

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
