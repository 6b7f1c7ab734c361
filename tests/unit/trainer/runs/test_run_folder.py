"""A run's files after a crash, except its checkpoints: half-written lines and later steps are removed."""

import json
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from services.trainer.runs.run_folder import RunFolder


def with_lines(folder: Path, *steps: int, tail: str = "") -> RunFolder:
    run = RunFolder(folder)
    run.create("steps: 9\n")
    for step in steps:
        run.append({"step": step, "success": 0.5})
        run.trajectory_file(step).write_bytes(b"rows")
    with run.metrics.open("a") as file:
        file.write(tail)
    return run


def test_an_incomplete_line_is_ignored_and_removed(tmp_path: Path) -> None:
    run = with_lines(tmp_path, 1, 2, tail='{"step": 3, "succ')
    assert [line["step"] for line in run.step_lines()] == [1, 2]
    run.truncate_after(2)
    run.append({"step": 3})
    assert [json.loads(text)["step"] for text in run.metrics.read_text().splitlines()] == [1, 2, 3]


def test_lines_and_trajectories_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    run = with_lines(tmp_path, 1, 2, 3)
    run.truncate_after(1)
    assert [line["step"] for line in run.step_lines()] == [1]
    assert [path.name for path in sorted(run.trajectories.iterdir())] == ["step_000001.parquet"]


def test_events_stay_when_the_lines_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    run = with_lines(tmp_path, 1, 2)
    run.append({"event": "rollback", "step": 2})
    run.truncate_after(1, {"event": "rollback", "step": 1})
    assert [line["step"] for line in run.step_lines()] == [1]
    assert [event["step"] for event in run.events()] == [2, 1]


def test_a_run_that_was_killed_before_its_first_line_can_be_truncated(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.truncate_after(0)
    assert run.step_lines() == []


def test_a_folder_with_a_run_is_not_started_again(tmp_path: Path) -> None:
    run = with_lines(tmp_path, 1)
    with pytest.raises(ConfigurationError, match="holds a run already"):
        run.create("steps: 1\n")
    assert run.config.read_text() == "steps: 9\n"


def test_a_folder_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write into the run folder .*: Not a directory"):
        RunFolder(tmp_path / "file" / "run").create("")


def test_the_configuration_is_replaced_completely(tmp_path: Path) -> None:
    run = with_lines(tmp_path, 1)
    run.write_config("steps: 10\n")
    assert run.config.read_text() == "steps: 10\n"
    assert not list(tmp_path.glob("*.tmp"))
