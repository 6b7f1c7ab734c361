"""KL estimators: which may stand in the loss, which in the reward, and that none overflows.

Expectations are enumerated exactly over a softmax of 4 tokens. As a loss, k1 differentiated naively has the expected
gradient 0 and k3 a biased one; in the reward, k1 is right and k3 is biased.
"""

import pytest
import torch

from services.trainer.losses.kl import kl_loss_terms, kl_values

LOGITS = torch.tensor([0.3, -0.4, 1.1, 0.0])
REFERENCE = torch.log_softmax(torch.tensor([0.8, 0.1, -0.5, 0.2]), 0)
OTHER_SAMPLER = torch.log_softmax(torch.tensor([-0.2, 0.5, 0.4, 0.1]), 0)


def policy() -> tuple[torch.Tensor, torch.Tensor]:
    logits = LOGITS.clone().requires_grad_()
    return logits, torch.log_softmax(logits, 0)


def true_gradient() -> torch.Tensor:
    logits, logprobs = policy()
    (logprobs.exp() * (logprobs - REFERENCE)).sum().backward()
    return gradient_of(logits)


def gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def expected_loss_gradient(estimator, sampler: torch.Tensor | None) -> torch.Tensor:
    """Sum over tokens of sampler probability times the gradient of the token's loss."""
    logits, logprobs = policy()
    drawn_by = logprobs.detach() if sampler is None else sampler
    (drawn_by.exp() * kl_loss_terms(logprobs, REFERENCE, drawn_by, estimator)).sum().backward()
    return gradient_of(logits)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("sampler", [None, OTHER_SAMPLER], ids=["on_policy", "off_policy"])
def test_the_expected_gradient_of_every_loss_form_is_that_of_the_kl(estimator, sampler) -> None:
    assert torch.allclose(expected_loss_gradient(estimator, sampler), true_gradient(), atol=1e-6)


def test_k1_in_the_reward_gives_the_gradient_of_the_kl() -> None:
    logits, logprobs = policy()
    penalty = kl_values(logprobs, REFERENCE, "k1")
    # REINFORCE: expectation of the detached penalty times the gradient of the log-probability
    (logprobs.detach().exp() * penalty * logprobs).sum().backward()
    assert torch.allclose(gradient_of(logits), true_gradient(), atol=1e-6)


def test_k3_in_the_reward_would_be_biased() -> None:
    logits, logprobs = policy()
    (logprobs.detach().exp() * kl_values(logprobs, REFERENCE, "k3") * logprobs).sum().backward()
    assert not torch.allclose(gradient_of(logits), true_gradient(), atol=1e-2)


def test_differentiating_k1_or_k3_naively_would_be_wrong() -> None:
    for naive in (lambda d: d, lambda d: torch.expm1(-d) + d):
        logits, logprobs = policy()
        (logprobs.detach().exp() * naive(logprobs - REFERENCE)).sum().backward()
        assert not torch.allclose(gradient_of(logits), true_gradient(), atol=1e-2)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_values_of_k1_and_k3_have_the_kl_as_their_expectation(estimator) -> None:
    logprobs = torch.log_softmax(LOGITS, 0)
    exact = (logprobs.exp() * (logprobs - REFERENCE)).sum()
    assert torch.allclose((logprobs.exp() * kl_values(logprobs, REFERENCE, estimator)).sum(), exact, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("difference", [1000.0, -1000.0])
def test_a_huge_difference_gives_finite_losses_and_gradients(estimator, difference: float) -> None:
    logprobs = torch.tensor([difference], requires_grad=True)
    kl_loss_terms(logprobs, torch.zeros(1), torch.zeros(1), estimator).sum().backward()
    assert torch.isfinite(kl_loss_terms(logprobs, torch.zeros(1), torch.zeros(1), estimator)).all()
    assert torch.isfinite(gradient_of(logprobs)).all()
