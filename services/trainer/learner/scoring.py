"""Computes log-probabilities and entropies of the trainable tokens of a micro-batch.

Logits are the largest tensor of a language model, so they are computed for trainable tokens only and in chunks of
``logit_budget``: with the default of 2**26 and a vocabulary of 151,936, a chunk has 441 tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from services.trainer.learner.batching import MicroBatch, build_micro_batch, pack_micro_batches
from services.trainer.learner.device import LearnerSettings, explain_pass
from services.trainer.learner.model_folder import load_model
from services.trainer.learner.output_layer import OutputLayer
from services.trainer.learner.train_batch import FloatArray, TrainRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TokenOutputs:
    """Log-probability in nats of each trainable token, and its distribution's entropy if requested. Shapes: [N]."""

    logprobs: Tensor
    entropy: Tensor | None


def hidden_states(backbone: nn.Module, micro: MicroBatch) -> Tensor:
    """Last hidden states at the positions that predict trainable tokens. Shape: [N, hidden size]."""
    output = backbone(input_ids=micro.token_ids, position_ids=micro.position_ids, use_cache=False)
    return output.last_hidden_state[micro.predictor_rows, micro.predictor_columns]


def forward_logprobs(
    model: "PreTrainedModel", micro: MicroBatch, *, entropy: bool, entropy_gradient: bool = False, logit_budget: int
) -> TokenOutputs:
    """Run the model and score the trainable tokens, with at most ``logit_budget`` logits at once.

    Args:
        entropy: also return entropies, without a gradient unless ``entropy_gradient``.
    """
    hidden = hidden_states(cast(nn.Module, model.base_model), micro)
    output = OutputLayer(model)
    chunk = max(1, logit_budget // output.vocabulary)

    def score(states: Tensor, targets: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        logits = output(states) / temperatures[:, None]
        log_all = torch.log_softmax(logits, dim=-1)
        chosen = log_all.gather(1, targets[:, None])[:, 0]
        if not entropy:
            return chosen, chosen.detach()  # a placeholder that costs no memory; the caller drops it
        scored = log_all if entropy_gradient else log_all.detach()
        return chosen, -(scored.exp() * scored).sum(-1)

    # ``max(count, 1)``: a pass of padding rows has no targets and still needs one, empty piece, because the backward
    # pass starts from it.
    count = len(micro.targets)
    pieces: list[tuple[Tensor, Tensor]] = []
    for start in range(0, max(count, 1), chunk):
        part = slice(start, start + chunk)
        arguments = (hidden[part], micro.targets[part], micro.temperatures[part])
        # Without recomputation the backward pass would need the logits of all chunks, and chunks would save nothing.
        recompute = count > chunk and torch.is_grad_enabled()
        pieces.append(checkpoint(score, *arguments, use_reentrant=False) if recompute else score(*arguments))
    logprobs = torch.cat([piece[0] for piece in pieces])
    return TokenOutputs(logprobs, torch.cat([piece[1] for piece in pieces]) if entropy else None)


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
    # by identity, because rows hold arrays and so have no hash; packing sorts them, and the results must not be sorted
    position = {id(row): index for index, row in enumerate(rows)}
    arrays = [np.zeros(len(row), dtype=np.float32) for row in rows]
    for micro_rows in pack_micro_batches([row for row in rows if row.trainable_tokens], settings.token_budget):
        with explain_pass(micro_rows, settings):
            micro = build_micro_batch(micro_rows, device, settings.packed)
            values = micro.scatter(function(micro))
        for row, array in zip(micro_rows, values, strict=True):
            arrays[position[id(row)]] = array
    return arrays


class ReferencePolicy:
    """A policy that is never trained: the one that the run started from, for the KL term."""

    def __init__(self, model: "PreTrainedModel", settings: LearnerSettings) -> None:
        model.requires_grad_(False)
        self._model = model
        self._settings = settings

    @classmethod
    def from_folder(cls, folder: Path, settings: LearnerSettings) -> Self:
        """Load a Hugging Face folder.

        Raises:
            searchrl.errors.ConfigurationError: the folder or the device cannot be used.
        """
        return cls(load_model(folder, settings), settings)

    def annotate(self, rows: Sequence[TrainRow]) -> list[TrainRow]:
        """Return the rows with ``reference_logprobs``."""
        arrays = compute_logprobs(self._model, rows, self._settings)
        return [replace(row, reference_logprobs=array) for row, array in zip(rows, arrays, strict=True)]
