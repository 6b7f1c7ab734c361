"""The critic's clipped value loss."""

import pytest
import torch

from services.trainer.algorithms.settings import ValueLossSettings
from services.trainer.algorithms.value_loss import value_losses


def losses(values: list[float], clip: float | None) -> list[float]:
    settings = ValueLossSettings(clip=clip, coefficient=0.5)
    return value_losses(torch.tensor(values), torch.zeros(len(values)), torch.ones(len(values)), settings)[0].tolist()


def test_without_a_clip_the_loss_is_half_the_squared_error() -> None:
    assert losses([0.0, 0.5, 1.0], None) == pytest.approx([0.5, 0.125, 0.0])


def test_moving_past_the_clip_towards_the_return_earns_nothing_more() -> None:
    # old value 0, return 1, clip .2: at .5 the trusted value is .2, error .8^2
    assert losses([0.1, 0.5], 0.2) == pytest.approx([0.5 * 0.9**2, 0.5 * 0.8**2])


def test_moving_away_is_never_protected_by_the_clip() -> None:
    assert losses([-0.5], 0.2) == pytest.approx([0.5 * 1.5**2])
