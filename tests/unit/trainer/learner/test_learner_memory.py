"""A learner's memory: updates leave nothing behind, and ranks hold an equal part of weights, gradients and moments."""

import gc
from pathlib import Path

import pytest
import torch

from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ranks import ALONE
from services.trainer.learner.train_batch import TrainBatch
from tests.bench.trainer.learner_memory import LOSS, RankMemory, compare_ends, measure, summarize, update
from tests.fakes.train_rows import random_rows, write_tiny_model


def live_bytes() -> int:
    """Bytes of all tensors of this process."""
    gc.collect()
    return sum(each.nbytes for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))


def test_no_update_leaves_a_tensor_behind(tmp_path: Path) -> None:
    learner = Learner.from_folder(write_tiny_model(tmp_path), LearnerSettings(token_budget=128), 0)
    taken: list[int] = []
    for index in range(6):
        learner.forward_backward(TrainBatch.of(random_rows(4, seed=index)), LOSS)
        learner.optim_step(OptimSettings(learning_rate=1e-5))
        learner.publish(index)
        if index in (1, 5):  # the first step creates the moments
            taken.append(live_bytes())
    assert taken[0] == taken[1]


def test_one_process_holds_weights_gradients_and_two_moments(tmp_path: Path) -> None:
    found = update(ALONE, write_tiny_model(tmp_path, vocabulary=2000), 2)
    model = Learner.from_folder(tmp_path, LearnerSettings(), 0).model
    assert found.held == found.complete == 16 * sum(parameter.numel() for parameter in model.parameters())
    assert len(found.resident) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_rank_holds_its_part_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, vocabulary=2000)
    found = measure(folder, 2, updates=2)
    assert all(each.held <= each.complete / 2 * 1.15 for each in found)
    assert sum(each.held for each in found) == found[0].complete


def test_the_ends_are_compared_after_the_warm_up() -> None:
    resident = [5] * 20 + [100] * 90 + [110] * 90
    assert compare_ends(resident) == (100, 110)
    assert compare_ends([7]) == (7, 7)
    # the rank that grew most, and the one that holds most
    rows = summarize([RankMemory(60, 100, [10] * 10), RankMemory(40, 100, resident)])
    assert (rows["ranks"], rows["of 1/n"], rows["last / first"]) == (2, 1.2, "1.100")
