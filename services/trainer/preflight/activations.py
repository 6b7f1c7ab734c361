"""Estimates what the passes of a model take besides weights, gradients and moments; see docs/operations/sizing.md.

Letters: H hidden size, I intermediate size, Q width of all queries (heads x head dimension), K width of all keys, V
vocabulary. All sizes are bytes.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch

from services.trainer.learner.device import DTYPES, LearnerSettings

FLOAT32 = 4
# What a token leaves in a layer for the backward pass. Measured on a CPU with torch 2.13 by hooks on every tensor that
# autograd saves: seven shapes each of Qwen2, Qwen3 and Llama, which differ in the ratios of H, Q, K and I, in both
# dtypes. A linear fit gave these integers, with an error below 0.03 %. In the dtype of the passes:
SAVED_Q = 2  # queries as rotated, and the output of the attention
SAVED_K = 2  # keys as rotated, and values
SAVED_I = 4  # gate, its activation, the other branch, and their product
SAVED_NORM = 2  # of a norm's input: normalized, and times the weight; with a frozen weight only the latter
SAVED_HEAD_NORM = 1  # of queries and keys, if they are normalized (Qwen3): the product is rotated and not kept
# A norm computes in float32 and keeps its input so: one float32 number more, for each of the two norms of a layer.
# Softmax and norms keep up to three float32 numbers per head.
SAVED_PER_HEAD = 3
# While one layer's gradient is computed: gradients of both branches of I, and of the hidden state with a temporary.
# From peaks of the allocator in the same three families: 2 I + 1.3 to 1.5 H.
BACKWARD_I, BACKWARD_H = 2, 1.5
# Copies of the logits at the peak, always float32: logits, log-probabilities and their gradient; with entropies four,
# as probabilities and their product with the logarithms exist beside the first two; with a gradient of the entropy
# five. From peaks of the allocator with a vocabulary of 4,000.
LOGIT_COPIES, ENTROPY_COPIES, ENTROPY_GRADIENT_COPIES = 3, 4, 5
HEAD_COPIES = 2  # of them when the head's own gradient is computed
# Gradients of the head that exist at once, if several parts of the logits, or head and embeddings, are added up: the
# sum so far, the next one, and the new sum.
SUMMED = 3


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Widths of a transformer's layer; see the module for H, Q, K and I."""

    hidden: int
    queries: int
    keys: int
    intermediate: int
    heads: int
    head: int
    has_head_norms: bool
    trains_norms: bool

    @classmethod
    def of(cls, described: Any, trains_norms: bool = True) -> Self:
        """Read it from the configuration of transformers; an adapter trains no norms."""
        heads = described.num_attention_heads
        head = getattr(described, "head_dim", None) or described.hidden_size // heads
        return cls(
            hidden=described.hidden_size,
            queries=heads * head,
            # models like GPT-2 have one key head per query head, and an intermediate size of 4 times the hidden size
            keys=(getattr(described, "num_key_value_heads", None) or heads) * head,
            intermediate=getattr(described, "intermediate_size", None) or 4 * described.hidden_size,
            heads=heads,
            head=head,
            has_head_norms=_has_head_norms(described),
            trains_norms=trains_norms,
        )

    def norm_bytes(self, width: int) -> int:
        """Of a token, what a norm of the hidden state keeps."""
        return (FLOAT32 + (SAVED_NORM if self.trains_norms else SAVED_NORM - 1) * width) * self.hidden

    def saved_bytes(self, width: int, row_tokens: int = 0) -> int:
        """Of a token, what a layer keeps for the backward pass.

        Args:
            width: bytes of a number in the dtype of the passes.
            row_tokens: length of packed rows, if the attention has a mask; else 0.
        """
        saved = 2 * self.norm_bytes(width) + FLOAT32 * SAVED_PER_HEAD * self.heads
        saved += width * (SAVED_Q * self.queries + SAVED_K * self.keys + SAVED_I * self.intermediate)
        if self.has_head_norms:
            saved += (FLOAT32 + SAVED_HEAD_NORM * width) * (self.queries + self.keys)
        if row_tokens:  # with a mask, keys and values are repeated for every query head, and each layer keeps the mask
            saved += width * (SAVED_K * (self.queries - self.keys) + row_tokens)
        return saved

    def backward_bytes(self, width: int) -> int:
        """Of a token, what the backward pass of a layer takes more at its peak."""
        return round(width * (BACKWARD_I * self.intermediate + BACKWARD_H * self.hidden))


class PassSizes(NamedTuple):
    """Bytes of one forward and backward pass of ``learner.token_budget`` tokens.

    Attributes:
        activations: what the forward pass keeps.
        backward: what the backward pass of one layer takes more; with ``learner.gradient_checkpointing`` including the
            layer, which is recomputed.
        logits: what output layer and loss take more, before the layers' backward pass.
        summing: gradients of embeddings and head while they are added up, after the activations are freed.
    """

    activations: int
    backward: int
    logits: int
    summing: int


def estimate_passes(
    learner: LearnerSettings, described: Any, *, layer_parameters: int, is_sharded: bool, entropy_gradient: bool
) -> PassSizes:
    """Estimate the sizes of the passes of the model that the configuration of transformers describes.

    Args:
        layer_parameters: of one layer.
        entropy_gradient: whether the loss has a term of the entropy.
    """
    is_complete = learner.adapter.kind == "none"  # an adapter's gradients are small, and no other exists
    shape = LayerShape.of(described, trains_norms=is_complete)
    layers, width, tokens = described.num_hidden_layers, DTYPES[learner.dtype].itemsize, learner.token_budget
    masked = learner.packed and learner.attention == "sdpa"
    layer = shape.saved_bytes(width, row_tokens=tokens if masked else 0)
    # For all layers: the rotation's sine and cosine, and the last norm, whose output is kept where it predicts a
    # trained token, at most everywhere.
    end = shape.norm_bytes(width) + 2 * width * shape.head
    backward = shape.backward_bytes(width)
    if learner.gradient_checkpointing:
        kept, backward = layers * width * shape.hidden + end, backward + layer
    else:
        kept = layers * layer + end
    head = width * described.vocab_size * described.hidden_size if is_complete else 0
    pending = head if described.tie_word_embeddings else 0  # the head's waits for the embeddings' gradient
    # Of a layer, or of its largest matrix, the gradient before it is added to those of earlier passes. Sharded ones are
    # summed over the ranks in float32.
    fresh = (width + FLOAT32) * layer_parameters if is_sharded else width * shape.hidden * shape.intermediate
    summed = (width + FLOAT32) * head // width if is_sharded else 0
    return PassSizes(
        activations=tokens * kept,
        backward=tokens * backward + pending + (fresh if is_complete else 0),
        logits=_estimate_logits(learner, described.vocab_size, head, entropy_gradient),
        summing=max(SUMMED * pending, summed),
    )


def _estimate_logits(learner: LearnerSettings, vocabulary: int, head: int, entropy_gradient: bool) -> int:
    chunk = max(1, learner.logit_budget // vocabulary)
    copy_bytes = FLOAT32 * vocabulary * min(chunk, learner.token_budget)
    copies = ENTROPY_COPIES if learner.track_entropy else LOGIT_COPIES
    if entropy_gradient:
        copies = ENTROPY_GRADIENT_COPIES
    if learner.token_budget > chunk:  # parts are recomputed one after the other, and their gradients are added up
        return max(head + copies * copy_bytes, SUMMED * head + copy_bytes)
    return max(copies * copy_bytes, HEAD_COPIES * copy_bytes + head)


def single_layer(described: Any) -> Any:
    """The same configuration with one layer and a tiny vocabulary."""
    small = copy.deepcopy(described)
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = 1, 8, None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    return small


def _has_head_norms(described: Any) -> bool:
    """Whether queries and keys are normalized, which no configuration says."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(single_layer(described), trust_remote_code=False)
    return any(name.endswith("q_norm.weight") for name, _ in model.named_parameters())
