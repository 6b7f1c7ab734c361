"""How a program ends: SIGTERM unwinds it through its clean-up code, and its last message reaches the pod's status."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from searchrl.platform import processes

PROGRAM = """
import sys, time
from searchrl.platform.processes import exit_on_sigterm
exit_on_sigterm()
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
"""


def test_sigterm_unwinds_the_program_and_says_that_it_was_interrupted() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (143, "cleaned up\n")


def test_the_sentence_replaces_what_the_status_would_take_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(processes, "TERMINATION_LOG", log)
    processes.write_termination_message("service: no index; build one")
    assert log.read_text() == capsys.readouterr().err == "service: no index; build one\n"


def test_outside_kubernetes_no_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "TERMINATION_LOG", tmp_path / "termination-log")
    processes.write_termination_message("stopped")
    assert capsys.readouterr().err == "stopped\n"
    assert not list(tmp_path.iterdir())
