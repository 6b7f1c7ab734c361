"""The last message of a failing process, on standard error and as the pod's termination message."""

from pathlib import Path

import pytest

from searchrl.platform import termination_log


def test_the_sentence_replaces_what_the_status_would_take_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(termination_log, "TERMINATION_LOG", log)
    termination_log.write_termination_message("service: no index; build one")
    assert log.read_text() == capsys.readouterr().err == "service: no index; build one\n"


def test_outside_kubernetes_no_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(termination_log, "TERMINATION_LOG", tmp_path / "termination-log")
    termination_log.write_termination_message("stopped")
    assert capsys.readouterr().err == "stopped\n"
    assert not list(tmp_path.iterdir())
