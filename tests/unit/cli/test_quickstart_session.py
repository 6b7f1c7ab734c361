"""The quickstart shows the training steps that are completely written."""

import json
from pathlib import Path

import pytest

from searchrl.cli.quickstart.session import read_complete_steps

STEPS = [{"step": 1, "success": 0.25}, {"step": 2, "success": 0.5}]
LINES = "".join(json.dumps(step) + "\n" for step in STEPS)


@pytest.mark.parametrize("beginning", ["", "{", '{"step": 3, "succ', '{"step": 3, "success": 0.5}'])
def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path, beginning: str) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(LINES + beginning)
    assert read_complete_steps(metrics) == STEPS
    metrics.write_text(beginning)
    assert read_complete_steps(metrics) == []


def test_an_event_is_no_step(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(LINES + json.dumps({"event": "rollback", "step": 1}) + "\n")
    assert read_complete_steps(metrics) == STEPS


def test_a_job_that_has_written_no_step_has_none(tmp_path: Path) -> None:
    assert read_complete_steps(tmp_path / "metrics.jsonl") == []
