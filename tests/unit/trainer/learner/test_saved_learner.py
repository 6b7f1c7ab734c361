"""A learner is resumed to the bit, publishes and exports its weights, and refuses the state of another model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from searchrl.errors import ConfigurationError
from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.model_folder import fingerprint_folder, fingerprint_tensors
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.train_rows import random_rows, write_tiny_model


def learner_of(folder: Path, **settings) -> Learner:
    return Learner.from_folder(folder, LearnerSettings(**settings), 0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(model_folder: Path, tmp_path: Path, kind) -> None:
    settings = UpdateSettings(optim=OptimSettings(kind=kind, learning_rate=1e-3))
    batches = [TrainBatch.of(random_rows(6, seed=seed)) for seed in range(4)]
    uninterrupted = learner_of(model_folder)
    for batch in batches[:2]:
        update_policy(uninterrupted, batch, LossSettings(), settings)
    uninterrupted.save(tmp_path / "state")
    drawn = torch.rand(3), np.random.random(3)
    for batch in batches[2:]:
        update_policy(uninterrupted, batch, LossSettings(), settings)

    resumed = Learner.from_folder(model_folder, LearnerSettings(), 1234)
    resumed.load(tmp_path / "state")
    assert torch.equal(torch.rand(3), drawn[0]) and np.array_equal(np.random.random(3), drawn[1])
    assert resumed.steps == 4
    for batch in batches[2:]:
        update_policy(resumed, batch, LossSettings(), settings)
    assert resumed.publish(9).fingerprint == uninterrupted.publish(9).fingerprint


def test_a_state_saved_right_after_loading_loses_nothing(model_folder: Path, tmp_path: Path) -> None:
    learner = learner_of(model_folder)
    update_policy(learner, TrainBatch.of(random_rows(4)), LossSettings(), UpdateSettings())
    learner.save(tmp_path / "first")
    again = learner_of(model_folder)
    again.load(tmp_path / "first")
    again.save(tmp_path / "second")
    final = learner_of(model_folder)
    final.load(tmp_path / "second")
    for each in (learner, final):
        update_policy(each, TrainBatch.of(random_rows(4, seed=1)), LossSettings(), UpdateSettings())
    assert learner.publish(1).fingerprint == final.publish(1).fingerprint


def test_a_captured_state_is_written_later_as_it_was(model_folder: Path, tmp_path: Path) -> None:
    """After a step, which changes weights and moments in place, and after a restore, whose moments wait for a step."""
    learner = learner_of(model_folder)
    for name in ("first", "second"):
        update_policy(learner, TrainBatch.of(random_rows(4)), LossSettings(), UpdateSettings())
        learner.save(tmp_path / "state")
        learner.load(tmp_path / "state")
        learner.save(tmp_path / f"{name}-saved")
        learner.capture()
        torch.rand(3)
        update_policy(learner, TrainBatch.of(random_rows(4, seed=1)), LossSettings(), UpdateSettings())
        learner.write_captured(tmp_path / f"{name}-captured")
        for file in ("weights.safetensors", "state.pt"):
            saved, captured = (tmp_path / f"{name}-{kind}" / file for kind in ("saved", "captured"))
            assert saved.read_bytes() == captured.read_bytes(), (name, file)
    with pytest.raises(ValueError, match="no captured state"):
        learner.write_captured(tmp_path / "again")


def test_published_weights_are_copies_with_the_fingerprint_of_the_folder(model_folder: Path) -> None:
    learner = learner_of(model_folder)
    published = learner.publish(5)
    assert published.version == 5
    assert published.fingerprint == fingerprint_folder(model_folder) == fingerprint_tensors(published.tensors)
    update_policy(learner, TrainBatch.of(random_rows(2)), LossSettings(), UpdateSettings())
    assert fingerprint_tensors(published.tensors) == published.fingerprint != learner.publish(6).fingerprint


def test_exporting_writes_a_folder_that_loads_with_equal_weights_and_companions(model_folder, tmp_path) -> None:
    source = write_tiny_model(tmp_path / "source", seed=3)
    (source / "searcher.json").write_text("{}")
    (source / "tokenizer.json").write_text("{}")
    learner = learner_of(source)
    learner.export(tmp_path / "full")
    assert fingerprint_folder(tmp_path / "full") == learner.publish(0).fingerprint
    assert (tmp_path / "full" / "searcher.json").read_text() == "{}"
    assert (tmp_path / "full" / "tokenizer.json").is_file()
    update_policy(
        learner, TrainBatch.of(random_rows(4)), LossSettings(), UpdateSettings(optim=OptimSettings(learning_rate=1e-2))
    )
    learner.export(source, "bfloat16")  # over its own folder
    rounded = learner_of(source).publish(0).tensors
    for name, tensor in learner.publish(0).tensors.items():
        assert torch.equal(rounded[name], tensor.bfloat16().float())
    assert sorted(path.name for path in source.iterdir() if path.name.startswith(".")) == []


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a model folder"):
        learner_of(tmp_path)


def test_a_state_of_another_model_or_with_changed_weights_is_refused(model_folder: Path, tmp_path: Path) -> None:
    other = learner_of(write_tiny_model(tmp_path / "other", vocabulary=41))
    other.save(tmp_path / "state")
    with pytest.raises(ConfigurationError, match="another model"):
        learner_of(model_folder).load(tmp_path / "state")
    with pytest.raises(ConfigurationError, match="no learner state"):
        learner_of(model_folder).load(tmp_path / "nothing")

    learner = learner_of(model_folder)
    learner.save(tmp_path / "mixed")
    update_policy(learner, TrainBatch.of(random_rows(2)), LossSettings(), UpdateSettings())
    learner.save(tmp_path / "newer")
    (tmp_path / "newer" / "weights.safetensors").replace(tmp_path / "mixed" / "weights.safetensors")
    with pytest.raises(ConfigurationError, match="fingerprint"):
        learner_of(model_folder).load(tmp_path / "mixed")


def test_a_run_cannot_change_its_kind_of_optimizer(model_folder: Path, tmp_path: Path) -> None:
    learner = learner_of(model_folder)
    update_policy(learner, TrainBatch.of(random_rows(2)), LossSettings(), UpdateSettings())
    with pytest.raises(ConfigurationError, match="cannot change to muon"):
        learner.optim_step(OptimSettings(kind="muon"))
    learner.save(tmp_path / "state")
    resumed = learner_of(model_folder)
    resumed.load(tmp_path / "state")
    with pytest.raises(ConfigurationError, match="does not fit"):
        resumed.optim_step(OptimSettings(kind="muon"))
