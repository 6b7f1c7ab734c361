"""Sampling by hashed uniform numbers: distribution, truncation, reproducibility."""

import numpy as np
import torch

from services.trainer.engines.sampling import sample_tokens, splitmix64, truncation_mask, uniforms


def test_splitmix64_gives_the_published_sequence() -> None:
    # the first outputs of the reference implementation seeded with 0
    state = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert splitmix64(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_uniform_numbers_are_uniform_over_seeds_and_over_positions() -> None:
    many = np.arange(20_000, dtype=np.uint64)
    for numbers in (uniforms(many, np.zeros_like(many)), uniforms(np.full_like(many, 7), many)):
        assert numbers.min() >= 0 and numbers.max() < 1
        counts = np.histogram(numbers, 20, (0, 1))[0]
        assert abs(counts - 1000).max() < 150  # five standard deviations of a count of 1000


def test_frequencies_are_the_probabilities_at_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(40_000, 3)
    many = np.arange(40_000, dtype=np.uint64)
    numbers = torch.from_numpy(uniforms(many, many))
    ids, logprobs = sample_tokens(logits, torch.full((40_000,), 0.5), numbers)
    expected = torch.softmax(torch.tensor([0.0, 2.0, 4.0]), 0)
    found = torch.bincount(ids, minlength=3) / 40_000
    assert torch.allclose(found, expected, atol=0.01)
    assert torch.allclose(logprobs.exp(), expected[ids], atol=1e-6)


def test_top_k_and_top_p_keep_the_smallest_sets_that_qualify() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4, 4)
    keep = truncation_mask(logits, torch.tensor([2, -1, -1, 3]), torch.tensor([1.0, 0.79, 1e-9, 0.5]))
    # top-2; 0.5 + 0.3 reaches 0.79; the best token always stays; top-3 renormalizes: 0.526 already reaches 0.5
    assert keep.tolist() == [
        [True, True, False, False], [True, True, False, False], [True, False, False, False],
        [True, False, False, False],
    ]  # fmt: skip


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]]).expand(3, 3)
    ids, _ = sample_tokens(logits, torch.ones(3), torch.tensor([0.0, 0.5, 1 - 2**-53]))
    assert ids.tolist() == [1, 1, 1]
