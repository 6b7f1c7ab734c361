"""The trainer as a job: the same command continues a run, SIGTERM has its own exit code, one process per run."""

import signal
from pathlib import Path

import pytest

from searchrl.storage.artifact_manifest import verify_folder
from tests.integration.trainer.conftest import STEPS, Environment, StartTrainer, final_weights, step_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

AS_JOB = ("--unfinished-exit-code", "143")


def test_interrupted_at_once_and_started_again_it_ends_with_the_same_bits(
    services: Environment, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    """The retriever is stopped, so the trainer exits without finishing the step in flight."""
    folder = tmp_path / "run"
    trainer = trainers(folder, arguments=AS_JOB)
    trainer.wait_for_step(3)
    services.retriever.send(signal.SIGSTOP)
    try:
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.end() == 143, trainer.log.read_text()
    finally:
        services.retriever.send(signal.SIGCONT)
    assert 3 <= len(step_lines(folder)) < STEPS
    trainers(folder, arguments=AS_JOB).finish()
    assert final_weights(folder) == final_weights(uninterrupted)
    model = verify_folder(folder / "final")
    assert model is not None and model.metadata["step"] == STEPS

    before = (folder / "final" / "manifest.json").stat().st_mtime_ns
    done = trainers(folder, arguments=AS_JOB)
    done.finish()
    assert "is finished" in done.log.read_text()
    assert (folder / "final" / "manifest.json").stat().st_mtime_ns == before


def test_with_new_a_folder_that_holds_a_run_is_refused(trainers: StartTrainer, uninterrupted: Path) -> None:
    refused = trainers(uninterrupted, arguments=["--new"])
    assert refused.end() == 2
    assert "holds a run already" in refused.log.read_text()


def test_a_second_process_waits_for_the_run_to_be_free(
    services: Environment, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = trainers(folder, arguments=AS_JOB)
    first.wait_for_step(2)
    services.retriever.send(signal.SIGSTOP)
    try:
        second = trainers(folder, arguments=AS_JOB)
        second.wait_until(lambda: "to release the run" in second.log.read_text(), "a second process")
        first.process.kill()
        first.process.wait()
    finally:
        services.retriever.send(signal.SIGCONT)
    second.finish()
    assert final_weights(folder) == final_weights(uninterrupted)


def test_a_run_with_ray_saves_before_it_is_interrupted(trainers: StartTrainer, tmp_path: Path) -> None:
    """Ray's own handler of SIGTERM would end the process within three seconds."""
    folder = tmp_path / "run"
    trainer = trainers(folder, settings={"learner.ranks": 1, "steps": 500}, arguments=AS_JOB)
    trainer.wait_for_step(1)
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.end() == 143, trainer.log.read_text()
    newest = f"step_{step_lines(folder)[-1]['step']}"
    assert (folder / "checkpoints" / "latest").read_text().strip() == newest
