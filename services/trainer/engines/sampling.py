"""Samples tokens from logits with one seed per rollout, and detects the token that completes a stop string.

The uniform number of a token is a hash of (seed, position), so what a rollout samples does not depend on the other rows
of its batch, on the size of the batch or on the order of requests.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from searchrl.agent.types import Tokenizer

# Increment and multipliers of SplitMix64; the increment is 2**64 divided by the golden ratio.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One output of the SplitMix64 generator (Steele, Lea, Flood 2014) per state."""
    # The arithmetic is meant to wrap at 2**64, which numpy reports as an overflow if it is given scalars.
    with np.errstate(over="ignore"):
        z = state + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one per (seed, position)."""
    # Hashed before the xor as well: seeds of neighbors differ in few bits, and ``seed ^ position`` alone would give
    # (seed 2, position 3) and (seed 3, position 2) the same number.
    mixed = splitmix64(splitmix64(seeds) ^ positions)
    # the upper 53 bits: as many as a float64 represents exactly
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_tokens(
    logits_BV: Tensor, temperatures_B: Tensor, uniforms_B: Tensor, keep_BV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one id per row by inverse CDF, or greedily if the temperature is 0; return ids and log-probabilities.

    Args:
        temperatures_B: the logits are divided by it before log-probabilities are taken (not in greedy rows).
        keep_BV: tokens that top-k and top-p keep; log-probabilities are those before this truncation.
    """
    greedy_B = temperatures_B == 0
    scale_B = torch.where(greedy_B, torch.ones_like(temperatures_B), temperatures_B)
    logprobs_BV = torch.log_softmax(logits_BV.float() / scale_B[:, None], dim=-1)
    # In float32, the cumulative sum over a large vocabulary would round away rare tokens.
    weights_BV = logprobs_BV.double().exp_()
    if keep_BV is not None:
        weights_BV *= keep_BV
    cdf_BV = weights_BV.cumsum(-1)
    totals_B1 = cdf_BV[:, -1:]
    below_totals_B1 = torch.nextafter(totals_B1, torch.zeros_like(totals_B1))  # the product may round up to the total
    targets_B1 = torch.minimum(uniforms_B.double()[:, None] * totals_B1, below_totals_B1)
    # The first entry above the target. With weights [0, 0.5, 0.5] the sums are [0, 0.5, 1]; a target of 0 gives id 1,
    # where right=False would give id 0, which has no weight. A target equal to the total would give id 3, past the end.
    ids_B1 = torch.searchsorted(cdf_BV, targets_B1, right=True)
    if greedy_B.any():
        ids_B1 = torch.where(greedy_B[:, None], logprobs_BV.argmax(-1, keepdim=True), ids_B1)
    return ids_B1[:, 0], logprobs_BV.gather(1, ids_B1)[:, 0]


def truncation_mask(logits_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Tensor:
    """Tokens that survive top-k (values below 1 keep all) and then top-p; the best token always survives."""
    ordered_BV, order_BV = logits_BV.float().sort(dim=-1, descending=True)
    ranks_V = torch.arange(logits_BV.shape[-1])
    keep_BV = (top_k_B[:, None] < 1) | (ranks_V < top_k_B[:, None])
    probabilities_BV = torch.softmax(ordered_BV.masked_fill(~keep_BV, float("-inf")), dim=-1)
    # The mass before a token, not with it: the token that reaches top_p is kept. For [0.5, 0.3, 0.2] and top_p 0.6, the
    # masses before are [0, 0.5, 0.8], and two tokens stay.
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    keep_BV &= (before_BV < top_p_B[:, None]) | (ranks_V == 0)
    return torch.zeros_like(keep_BV).scatter_(1, order_BV, keep_BV)


class StopDetector:
    """Finds the token that completes a stop string, and decodes text only if the token could end one.

    A token can complete a stop string only if its own text contains the string's last character; the text of
    the complete turn is decoded and searched for such tokens alone.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        # A run uses one or two sets of stop strings. Finding candidates decodes every token of the vocabulary, and the
        # requests of a server may name any strings, so few results are kept, and not without limit.
        self._candidates = lru_cache(maxsize=16)(self._find_candidates)

    def completes(self, ids: Sequence[int], stop: tuple[str, ...]) -> bool:
        """True if the last of the sampled ``ids`` completes one of the strings."""
        if not stop or not ids or ids[-1] not in self._candidates(stop):
            return False
        text = self._tokenizer.decode(ids)
        return any(string in text for string in stop)

    def _find_candidates(self, stop: tuple[str, ...]) -> frozenset[int]:
        lasts = {string[-1] for string in stop if string}
        # a character outside ASCII may be split over tokens, so that no single token's text contains it
        if not all(last.isascii() for last in lasts):
            return frozenset(range(self._vocabulary_size))
        texts = ((token, self._tokenizer.decode([token])) for token in range(self._vocabulary_size))
        return frozenset(token for token, text in texts if any(last in text for last in lasts))
