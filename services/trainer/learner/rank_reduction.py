"""Sums gradients over all ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over ranks.

    Losses are normalized by global counts, so the sum over ranks is the gradient of the complete batch. Every rank
    takes part in every step, even if its rows have no trainable token: its gradients are 0 then. One flat tensor makes
    it a single collective call, for the memory of one more copy of the gradients.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        end = start + gradient.numel()
        gradient.copy_(flat[start:end].view_as(gradient))
        start = end
