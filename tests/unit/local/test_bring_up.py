"""A detached supervisor that ends before it is ready is reported."""

import sys
from pathlib import Path

import pytest

from searchrl.local.bring_up import run_detached


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "searchrl: the supervisor ended with exit code 3 and an empty log, {folder}/logs/supervisor.log\n"),
        ("echo starting; echo searchrl: no corpus; exit 3", "searchrl: no corpus\n"),
    ],
)
def test_a_supervisor_that_ends_early_is_reported_by_its_last_line_or_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, message: str
) -> None:
    supervisor = tmp_path / "supervisor"
    supervisor.write_text(f"#!/bin/sh\n{script}\n")
    supervisor.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(supervisor))
    assert run_detached(tmp_path, ["up"]) == 3
    assert capsys.readouterr().err == message.format(folder=tmp_path)
