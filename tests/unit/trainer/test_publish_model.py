"""A final model is published into a folder of its own, and never overwrites another one."""

import os
import shutil
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import verify_folder
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.publish_model import main, publish
from services.trainer.runs.run_folder import RunFolder, write_model_manifest
from tests.fakes.small_run import run_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    final = tmp_path / "runs" / "first" / "final"
    final.mkdir(parents=True)
    (final / "model.safetensors").write_text("weights")
    write_model_manifest(final, "first", 60, "abc")
    return final.parent


def test_a_final_model_gets_a_folder_of_its_own_and_a_pointer(run: Path, tmp_path: Path) -> None:
    folder = publish(run, tmp_path / "models")
    assert folder == tmp_path / "models" / "first-step-000060"
    artifact = verify_folder(tmp_path / "models" / "first-latest")
    assert artifact is not None and artifact.metadata["fingerprint"] == "abc"


def test_the_names_of_a_published_model_are_flushed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, names = tmp_path / "models", list[set[str]]()

    def note(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(models):
            names.append({path.name for path in models.iterdir()})

    monkeypatch.setattr(os, "fsync", note)
    publish(run, models)
    assert names == [{"first-step-000060"}, {"first-step-000060", "first-latest"}]


def test_publishing_again_changes_nothing(run: Path, tmp_path: Path) -> None:
    folder = publish(run, tmp_path / "models")
    before = (folder / "manifest.json").read_text()
    assert publish(run, tmp_path / "models") == folder
    assert (folder / "manifest.json").read_text() == before


def test_a_later_step_leaves_the_earlier_model_where_it_was(run: Path, tmp_path: Path) -> None:
    first = publish(run, tmp_path / "models")
    write_model_manifest(run / "final", "first", 80, "def")
    second = publish(run, tmp_path / "models")
    assert first != second and first.is_dir()
    assert (tmp_path / "models" / "first-latest").resolve() == second


def test_another_model_of_the_same_name_is_refused(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "models")
    write_model_manifest(run / "final", "first", 60, "other")
    with pytest.raises(ConfigurationError, match="another model"):
        publish(run, tmp_path / "models")


def test_a_damaged_model_is_not_published(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "final" / "model.safetensors").write_text("changed")
    assert main(["--run", str(run), "--models", str(tmp_path / "models")]) == 2
    assert "checksum" in capsys.readouterr().err
    assert not list((tmp_path / "models").glob("*")) if (tmp_path / "models").is_dir() else True


def test_a_run_without_a_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        publish(tmp_path / "nothing", tmp_path / "models")


def test_a_checkpoint_of_a_run_with_settings_of_a_gpu_is_published_without_one(tmp_path: Path) -> None:
    config = run_config(tmp_path, learner={"device": "cuda", "attention": "flash_attention_2", "dtype": "bfloat16"})
    config.output.mkdir()
    shutil.copyfile(tmp_path / "run-settings.yaml", config.output / "run.yaml")
    learner = Learner.from_folder(config.model, LearnerSettings(dtype="bfloat16"), seed=0)
    fingerprint = learner.publish(0).fingerprint
    store = CheckpointStore(RunFolder(config.output).checkpoints)
    store.save(2, lambda part: learner.save(part / "learner"), {"fingerprint": fingerprint})
    folder = publish(config.output, tmp_path / "models")
    assert folder.name == "run-step-000002"
    published = Learner.from_folder(folder, LearnerSettings(), seed=0)
    assert published.publish(0).fingerprint == fingerprint


def test_the_command_names_the_value_that_serves_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(run), "--models", str(tmp_path / "models")]) == 0
    assert f"engines.searcher.model={tmp_path / 'models' / 'first-step-000060'}" in capsys.readouterr().out
