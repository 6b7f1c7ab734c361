"""A run that is killed at any instant, or stopped, and then resumed ends exactly as an undisturbed one.

Resuming repeats and skips no data, restores every random state, and never reads a half-written checkpoint: weights,
metrics and trajectories are the same to the bit.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from tests.integration.trainer.conftest import (
    GROUPS,
    SIZE,
    STEPS,
    Environment,
    StartTrainer,
    final_weights,
    step_lines,
)

# Above the default: a test runs the trainer several times, and each process imports torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TIMES = ("time", "seconds")


def trained(folder: Path) -> list[tuple[int, int, int, list[int]]]:
    """Step, group, index and token ids of every trained rollout, in the order of the files."""
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "trajectories").glob("step_*.parquet")):
        rows += parquet.read_table(path, columns=["step", "group_id", "rollout_index", "ids"]).to_pylist()
    return [(row["step"], row["group_id"], row["rollout_index"], row["ids"]) for row in rows]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without times and durations."""
    lines = step_lines(folder)
    return [{name: value for name, value in line.items() if not name.startswith(TIMES)} for line in lines]


def assert_same_run(resumed: Path, whole: Path) -> None:
    assert final_weights(resumed) == final_weights(whole)
    assert numbers(resumed) == numbers(whole)
    assert trained(resumed) == trained(whole)
    assert not list(resumed.rglob("*.tmp")) and not list(resumed.rglob("*.part"))


def test_an_uninterrupted_run_trains_every_group_once(uninterrupted: Path) -> None:
    rollouts = [(group_id, rollout_index) for _, group_id, rollout_index, _ in trained(uninterrupted)]
    assert rollouts == [
        (group_id, rollout_index) for group_id in range(STEPS * GROUPS) for rollout_index in range(SIZE)
    ]
    assert [line["step"] for line in numbers(uninterrupted)] == list(range(1, STEPS + 1))
    assert (uninterrupted / "metrics.jsonl").read_text().endswith("}\n")
    assert len({line["fingerprint"] for line in numbers(uninterrupted)}) > STEPS // 2  # otherwise nothing was learned


@pytest.mark.parametrize("instant", ["rollouts", "checkpoint"])
def test_killed_at_step_5_and_resumed_it_ends_with_the_same_bits(
    instant: str, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    """Killed in the middle of the step's rollouts, and while its checkpoint is being written."""
    folder = tmp_path / "run"
    assert trainers(folder, killed=(instant, 5)).end() == -signal.SIGKILL
    latest = (folder / "checkpoints" / "latest").read_text()
    # The next step's rollouts may start while the checkpoint of the previous one is still being written.
    assert latest == "step_4\n" or (instant == "rollouts" and latest == "step_3\n")
    assert (folder / "checkpoints" / "step_5.tmp").exists() == (instant == "checkpoint")
    assert_same_run(trainers(folder, resume=True).finish(), uninterrupted)


def test_killed_again_and_again_it_still_ends_with_the_same_bits(
    trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    """Killed in an update, between update and publication, within a line of the log, between checkpoint and pointer."""
    folder = tmp_path / "run"
    for step, instant in ((1, "update"), (2, "publish"), (3, "log"), (5, "rename")):
        trainer = trainers(folder, resume=step > 1, killed=(instant, step))
        assert trainer.end() == -signal.SIGKILL, trainer.log.read_text()
    assert_same_run(trainers(folder, resume=True).finish(), uninterrupted)


def test_killed_while_rollouts_wait_for_the_retriever_it_ends_with_the_same_bits(
    services: Environment, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    trainer = trainers(tmp_path / "run")
    trainer.wait_for_step(4)
    services.retriever.send(signal.SIGSTOP)
    try:
        trainer.process.kill()
        assert trainer.end() == -signal.SIGKILL
    finally:
        services.retriever.send(signal.SIGCONT)
    assert len(trainer.lines()) < STEPS
    assert_same_run(trainers(trainer.folder, resume=True).finish(), uninterrupted)


def test_sigterm_saves_exits_with_0_and_the_run_continues_with_the_same_bits(
    services: Environment, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    trainer = trainers(tmp_path / "run")
    trainer.wait_for_step(3)
    services.retriever.send(signal.SIGSTOP)  # the step in flight cannot end before the signal
    try:
        done = len(trainer.lines())
        trainer.process.send_signal(signal.SIGTERM)
    finally:
        services.retriever.send(signal.SIGCONT)
    assert trainer.finish() == tmp_path / "run"
    lines = trainer.lines()
    assert done <= len(lines) <= done + 2 < STEPS
    newest = f"step_{lines[-1]['step']}"
    assert (trainer.folder / "checkpoints" / "latest").read_text().strip() == newest
    assert not (trainer.folder / "final").exists()
    assert_same_run(trainers(trainer.folder, resume=True).finish(), uninterrupted)


def test_stop_pause_resume_and_checkpoint_over_rest_do_not_change_the_run(
    trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    trainer = trainers(tmp_path / "run", settings={"checkpoints.every": 0})
    assert trainer.call("POST", "/v1/admin/pause")["state"] in ("paused", "starting", "running")
    saved = trainer.call("POST", "/v1/admin/checkpoint")
    assert Path(saved["path"]).is_dir()
    step = trainer.call("GET", "/v1/status")["step"]
    assert step == int(saved["step"]) == len(trainer.lines())
    trainer.call("POST", "/v1/admin/resume")
    trainer.wait_for_step(step + 1)
    trainer.call("POST", "/v1/admin/stop")
    trainer.finish()
    steps = [line["step"] for line in trainer.lines()]
    assert steps == list(range(1, len(steps) + 1))
    assert_same_run(trainers(trainer.folder, resume=True).finish(), uninterrupted)


def test_resuming_a_finished_run_changes_nothing(trainers: StartTrainer, uninterrupted: Path, tmp_path: Path) -> None:
    before = final_weights(uninterrupted)
    manifest = (uninterrupted / "checkpoints" / f"step_{STEPS}" / "manifest.json").stat().st_mtime_ns
    trainers(uninterrupted, resume=True).finish()
    assert final_weights(uninterrupted) == before
    assert (uninterrupted / "checkpoints" / f"step_{STEPS}" / "manifest.json").stat().st_mtime_ns == manifest
