"""A device that is not there, and memory that does not suffice, are one sentence each."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from searchrl.errors import ConfigurationError
from services.trainer.learner.learner import Learner
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.policy_losses import LossSettings
from tests.gpu.wide_rows import wide_rows

pytestmark = pytest.mark.gpu
ROWS = wide_rows(256, shortest=200, longest=250)


@pytest.fixture
def crowded(qwen_folder: Path, device: str, learner_on) -> Iterator[Learner]:
    """A learner on a device with room for a small batch only; a dry run pretends."""
    learner = learner_on(qwen_folder, device, token_budget=1 << 20)
    if device == "cpu":
        hook = learner.model.base_model.register_forward_pre_hook(_refuse_large_batches, with_kwargs=True)
        yield learner
        hook.remove()
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    yield learner
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def _refuse_large_batches(_module, _args, inputs) -> None:
    if inputs["input_ids"].numel() > 10_000:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_batch_that_does_not_fit_names_the_settings_and_a_smaller_one_still_runs(crowded: Learner) -> None:
    sentence = (
        r"256 rows of up to 249 tokens does not fit into the GPU's memory; lower learner.token_budget \(now 1048576"
    )
    with pytest.raises(ConfigurationError, match=sentence):
        crowded.forward_backward(TrainBatch.of(ROWS), LossSettings())
    with pytest.raises(ConfigurationError, match=sentence):
        crowded.logprobs(ROWS)
    gc.collect()  # what failed is held by the errors' frames
    report = crowded.forward_backward(TrainBatch.of(wide_rows(2)), LossSettings())
    assert report.sums["tokens"] > 0


def test_a_gpu_that_is_not_there_is_refused_by_name(qwen_folder: Path, learner_on) -> None:
    count = torch.cuda.device_count()
    if count > 7:
        pytest.skip("this machine has eight GPUs")
    with pytest.raises(ConfigurationError, match=f"device cuda:7 was requested, but this machine has {count} CUDA"):
        learner_on(qwen_folder, "cuda:7")


def test_the_first_gpu_can_be_named_by_its_number(qwen_folder: Path, device: str, learner_on) -> None:
    name = device if device == "cpu" else f"{device}:0"
    learner = learner_on(qwen_folder, name)
    assert str(next(learner.model.parameters()).device) == name
