"""A run on a GPU resumes with equal bits, and a checkpoint is bound to no device."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.learner.training_state import random_state, restore_random_state
from services.trainer.losses.policy_losses import LossSettings
from tests.gpu.wide_rows import wide_rows

pytestmark = pytest.mark.gpu


def update(learner: Learner, seed: int, kind: Literal["adamw", "muon"] = "adamw") -> float:
    settings = UpdateSettings(optim=OptimSettings(kind=kind, learning_rate=1e-3, epsilon=1e-3))
    return update_policy(learner, TrainBatch.of(wide_rows(8, seed=seed)), LossSettings(), settings).loss.loss


def is_equal(first: Learner, second: Learner) -> bool:
    return first.publish(0).fingerprint == second.publish(0).fingerprint


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    qwen_folder: Path,
    tmp_path: Path,
    device: str,
    dtype: str,
    kind: Literal["adamw", "muon"],
    deterministic: None,
    learner_on,
) -> None:
    uninterrupted = learner_on(qwen_folder, device, dtype=dtype)
    for seed in (1, 2):
        update(uninterrupted, seed, kind)
    torch.rand(8, device=device)  # a generator that is not where its seed put it
    uninterrupted.save(tmp_path)
    drawn = torch.rand(8, device=device)
    last = update(uninterrupted, 3, kind)
    resumed = learner_on(qwen_folder, device, dtype=dtype)
    resumed.load(tmp_path)
    assert resumed.steps == uninterrupted.steps - 2 > 0
    assert torch.equal(torch.rand(8, device=device), drawn)
    assert update(resumed, 3, kind) == last
    assert is_equal(uninterrupted, resumed)


@pytest.mark.parametrize("way", ["to the CPU", "from the CPU"])
def test_a_checkpoint_continues_on_the_other_device(
    qwen_folder: Path, tmp_path: Path, device: str, way: str, learner_on
) -> None:
    source, target = (device, "cpu") if way == "to the CPU" else ("cpu", device)
    written, other = learner_on(qwen_folder, source), learner_on(qwen_folder, target)
    update(written, 1)
    written.save(tmp_path)
    other.load(tmp_path)
    assert is_equal(written, other) and other.steps == 2
    assert update(other, 2) == pytest.approx(update(written, 2), rel=1e-3, abs=1e-5)
    for name, tensor in written.publish(0).tensors.items():
        assert torch.allclose(tensor, other.publish(0).tensors[name], atol=1e-4), name


def test_random_generators_of_more_gpus_than_there_are_can_be_restored(device: str) -> None:
    state = random_state()
    drawn = torch.rand(8, device=device)
    restore_random_state(state | {"cuda": state.get("cuda", []) * 2})
    assert torch.equal(torch.rand(8, device=device), drawn)


def test_an_export_from_the_gpu_loads_with_the_same_weights(
    qwen_folder: Path, tmp_path: Path, device: str, learner_on
) -> None:
    learner = learner_on(qwen_folder, device)
    update(learner, 1)
    learner.export(tmp_path / "exported")
    assert is_equal(learner, learner_on(tmp_path / "exported", "cpu"))
