"""Computes log-probabilities and entropies of the trainable tokens of a micro-batch.

Logits are the largest tensor of a language model, so they are computed for trainable tokens only and in chunks of
``logit_budget``: with the default of 2**26 and a vocabulary of 151,936, a chunk has 441 tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from services.trainer.learner.adapters import adapter_off
from services.trainer.learner.batching import MicroBatch, build_micro_batch, pack_for_ranks
from services.trainer.learner.device import LearnerSettings, explain_pass, require_device
from services.trainer.learner.output_layer import OutputLayer, check_logits
from services.trainer.learner.ranks import ALONE, Ranks
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


class PolicyModel(nn.Module):
    """A language model whose forward pass is the scoring of a micro-batch.

    A sharded model gathers the weights of embeddings and head only in a pass of its root, which this is.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = cast(nn.Module, model)

    @property
    def language_model(self) -> "PreTrainedModel":
        """The model itself."""
        return cast("PreTrainedModel", self.model)

    def forward(
        self, micro: MicroBatch, entropy: bool, entropy_gradient: bool, logit_budget: int
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies; see ``forward_logprobs``."""
        # a tuple, because sharding searches the outputs for tensors and does not look into a dataclass
        outputs = forward_logprobs(
            self.language_model,
            micro,
            entropy=entropy or entropy_gradient,
            entropy_gradient=entropy_gradient,
            logit_budget=logit_budget,
        )
        return outputs.logprobs, outputs.entropy

    def check_logits(self, ids_1T: Tensor) -> None:
        """See ``check_logits``."""
        check_logits(self.language_model, ids_1T)


def compute_logprobs(
    policy: PolicyModel, rows: Sequence[TrainRow], settings: LearnerSettings, ranks: Ranks = ALONE
) -> list[FloatArray]:
    """One array per row: the log-probability in nats of each trainable token, after temperature; 0 elsewhere."""

    def score(micro: MicroBatch) -> Tensor:
        return policy(micro, False, False, settings.logit_budget)[0]

    return map_tokens(rows, score, settings, ranks)


@torch.no_grad()
def map_tokens(
    rows: Sequence[TrainRow], function: Callable[[MicroBatch], Tensor], settings: LearnerSettings, ranks: Ranks = ALONE
) -> list[FloatArray]:
    """Run ``function`` over micro-batches; it returns one value per trainable token. Arrays come in the rows' order.

    Each rank runs a share of the rows, and all of them return the values of all rows.
    """
    # by identity, because rows hold arrays and so have no hash; packing sorts them, and the results must not be sorted
    position = {id(row): index for index, row in enumerate(rows)}
    arrays = [np.zeros(len(row), dtype=np.float32) for row in rows]
    scored = [row for row in rows if row.trainable_tokens]
    device = require_device(settings.device)
    found: list[tuple[int, FloatArray]] = []
    for micro_rows in ranks.share(pack_for_ranks(scored, ranks.size, settings.token_budget)):
        with explain_pass(micro_rows, settings):
            micro = build_micro_batch(micro_rows, device, settings.packed)
            values = micro.scatter(function(micro))
        # padding rows, which only make the ranks run equally many passes, have no position
        found += [
            (position[id(row)], array) for row, array in zip(micro_rows, values, strict=True) if id(row) in position
        ]
    for part in ranks.gather(found):
        for index, array in part:
            arrays[index] = array
    return arrays


class ReferencePolicy:
    """A policy that is never trained: the one that the run started from, for the KL term.

    If an adapter is trained, that is the policy in training without its adapter, and needs no memory of its own.
    """

    def __init__(self, policy: PolicyModel, settings: LearnerSettings, ranks: Ranks = ALONE) -> None:
        self.policy = policy
        self._settings = settings
        self._ranks = ranks

    def annotate(self, rows: Sequence[TrainRow]) -> list[TrainRow]:
        """Return the rows with ``reference_logprobs``."""
        with adapter_off(self.policy):
            arrays = compute_logprobs(self.policy, rows, self._settings, self._ranks)
        return [replace(row, reference_logprobs=array) for row, array in zip(rows, arrays, strict=True)]
