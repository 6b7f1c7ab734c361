"""The last message of a failing process, on standard error and as the pod's termination message."""

from pathlib import Path

import pytest

from searchrl.platform import last_words


def test_the_sentence_replaces_what_the_status_would_take_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(last_words, "TERMINATION_LOG", log)
    last_words.say_last("service: no index; build one")
    assert log.read_text() == capsys.readouterr().err == "service: no index; build one\n"


def test_outside_kubernetes_no_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(last_words, "TERMINATION_LOG", tmp_path / "termination-log")
    last_words.say_last("stopped")
    assert capsys.readouterr().err == "stopped\n"
    assert not list(tmp_path.iterdir())
