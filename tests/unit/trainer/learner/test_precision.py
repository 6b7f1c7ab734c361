"""A learner that computes in bfloat16 keeps float32 weights, so that updates far below a rounding step add up."""

from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.train_rows import move_weights, random_rows, write_tiny_model

RATE = 1e-6
"""The usual rate for a language model. A weight near 0.02 has bfloat16 neighbors 1.2e-4 away."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), width=64)


def open_learner(folder: Path, **settings: Any) -> Learner:
    return Learner.from_folder(folder, LearnerSettings.model_validate(settings), 0)


def test_a_rate_of_one_millionth_moves_the_weights_as_in_float32(folder: Path) -> None:
    expected = move_weights(open_learner(folder), 20, RATE)
    found = move_weights(open_learner(folder, dtype="bfloat16"), 20, RATE)
    assert (found != 0).float().mean() > 0.99
    # the share of the float32 change that is found again: 1 would be all of it, rounded weights would give about 0
    assert float(found @ expected / expected.square().sum()) > 0.9


def test_passes_run_in_bfloat16_and_weights_gradients_and_moments_are_float32(folder: Path) -> None:
    learner = open_learner(folder, dtype="bfloat16")
    move_weights(learner, 1, RATE)
    computed: list[torch.dtype] = []
    layer: Any = learner.model.base_model
    layer.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: computed.append(output.dtype))
    learner.forward_backward(TrainBatch.of(random_rows(2)), LossSettings())
    assert set(computed) == {torch.bfloat16}
    gradients = [parameter.grad for parameter in learner.model.parameters()]
    optimizer = learner._trained._optimizer
    assert optimizer is not None
    moments = [m for each in optimizer.state_dict().values() for state in each.values() for m in state.values()]
    for tensor in [*learner._trained.tensors().values(), *gradients, *moments]:
        assert tensor is not None and tensor.dtype == torch.float32


def test_log_probabilities_are_those_of_float32_up_to_the_rounding_of_the_passes(folder: Path) -> None:
    rows = random_rows(6)
    exact = open_learner(folder).logprobs(rows)
    rounded = open_learner(folder, dtype="bfloat16").logprobs(rows)
    differences = [abs(one - other).max() for one, other in zip(exact, rounded, strict=True)]
    assert 0 < max(differences) < 0.05
