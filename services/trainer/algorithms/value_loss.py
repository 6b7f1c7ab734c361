"""Computes the critic's loss at each trainable token."""

import torch
from torch import Tensor

from services.trainer.algorithms.settings import ValueLossSettings


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
