"""``searchrl down`` stops the supervisor, even one that ends by itself meanwhile."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from searchrl.cli.main import run
from searchrl.local.instance import Instance


@pytest.mark.parametrize("ended_before", [signal.SIGTERM, signal.SIGKILL])
def test_a_supervisor_that_ends_before_a_signal_reaches_it_counts_as_stopped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ended_before: signal.Signals,
) -> None:
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        sent.append(number)
        if number == ended_before:
            raise ProcessLookupError

    # This test process stands for a supervisor that appears to be running until the signal finds it gone.
    Instance(str(tmp_path), os.getpid(), psutil.Process().create_time(), "ready", "0").write()
    monkeypatch.setattr(os, "kill", kill)
    assert run(["down", "--folder", str(tmp_path), "--timeout", "0"]) == 0
    assert sent[-1] == ended_before
    assert capsys.readouterr().out.startswith("stopped what ran in")
