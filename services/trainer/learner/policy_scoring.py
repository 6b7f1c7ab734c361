"""Computes log-probabilities of the trainable tokens of rows, without gradients."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from services.trainer.learner.forward import forward_logprobs
from services.trainer.learner.memory_errors import explain_pass
from services.trainer.learner.micro_batch import MicroBatch, build_micro_batch
from services.trainer.learner.packing import pack_micro_batches
from services.trainer.learner.settings import LearnerSettings
from services.trainer.learner.train_batch import FloatArray, TrainRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_logprobs(model: "PreTrainedModel", rows: Sequence[TrainRow], settings: LearnerSettings) -> list[FloatArray]:
    """One array per row: the log-probability in nats of each trainable token, after temperature; 0 elsewhere."""

    def score(micro: MicroBatch) -> Tensor:
        return forward_logprobs(model, micro, entropy=False, logit_budget=settings.logit_budget).logprobs

    return map_tokens(rows, score, settings, next(model.parameters()).device)


@torch.no_grad()
def map_tokens(
    rows: Sequence[TrainRow], function: Callable[[MicroBatch], Tensor], settings: LearnerSettings, device: torch.device
) -> list[FloatArray]:
    """Run ``function`` over micro-batches; it returns one value per trainable token. Arrays come in the rows' order."""
    position = {id(row): index for index, row in enumerate(rows)}
    arrays = [np.zeros(len(row), dtype=np.float32) for row in rows]
    for micro_rows in pack_micro_batches([row for row in rows if row.trainable_tokens], settings.token_budget):
        with explain_pass(micro_rows, settings):
            micro = build_micro_batch(micro_rows, device, settings.packed)
            values = micro.scatter(function(micro))
        for row, array in zip(micro_rows, values, strict=True):
            arrays[position[id(row)]] = array
    return arrays
