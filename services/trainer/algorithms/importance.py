"""Importance weights for tokens that another policy than the trained one has sampled."""

import torch
from torch import Tensor

from services.trainer.algorithms.kl import clamp_log_ratio
from services.trainer.algorithms.settings import LossSettings


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
