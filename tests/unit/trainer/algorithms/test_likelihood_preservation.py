"""Likelihood preservation (LLDS): the penalty on good actions that became less likely."""

import pytest
import torch

from services.trainer.algorithms.likelihood_preservation import llds_losses

OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0])
ACTIONS = torch.tensor([0, 0, 1, 1])


def penalty(logprobs: list[float], advantages: list[float], threshold: float = 0.0) -> list[float]:
    return llds_losses(torch.tensor(logprobs), OLD, torch.tensor(advantages), ACTIONS, threshold).tolist()


def test_only_dropped_tokens_of_dropped_actions_are_penalized() -> None:
    # action 0 fell by .5 in sum (one token rose), action 1 rose in sum although its first token fell
    assert penalty([-1.7, -0.8, -1.1, -0.5], [1.0] * 4) == pytest.approx([0.7, 0.0, 0.0, 0.0])


def test_bad_actions_may_fall_freely_and_neutral_ones_may_not() -> None:
    assert penalty([-2.0, -2.0, -2.0, -2.0], [-1.0, -1.0, 0.0, 0.0]) == pytest.approx([0.0, 0.0, 1.0, 1.0])


def test_a_fall_within_the_threshold_is_free() -> None:
    assert penalty([-1.2, -1.2, -1.6, -1.6], [1.0] * 4, threshold=0.5) == pytest.approx([0.0, 0.0, 0.6, 0.6])


def test_the_gradient_pushes_fallen_tokens_up_and_touches_no_others() -> None:
    logprobs = torch.tensor([-2.0, -0.5, -0.5, -0.5], requires_grad=True)
    llds_losses(logprobs, OLD, torch.ones(4), ACTIONS).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, 0.0, 0.0, 0.0]


def test_no_tokens_give_no_losses() -> None:
    empty = torch.zeros(0)
    assert llds_losses(empty, empty, empty, torch.zeros(0, dtype=torch.long)).shape == (0,)
