"""A file is replaced at once, flushed before it gets its name, and nothing is left behind by a write that fails."""

import os
from pathlib import Path

import pytest

from searchrl.storage.atomic_file import write_atomically


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for text in ("old", "naïve 北京"):
        write_atomically(tmp_path / "file.json", text)
    assert (tmp_path / "file.json").read_text(encoding="utf-8") == "naïve 北京"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_the_content_is_on_disk_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flushed = tmp_path / "file.json", list[tuple[int, bool]]()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append((os.fstat(handle).st_ino, path.exists())))
    write_atomically(path, "text")
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_two_writers_have_temporary_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "file.json", Path.replace

    def replace(temporary: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", rename)
        write_atomically(path, "second")  # while the first is about to be renamed
        return rename(temporary, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(path, "first")
    assert path.read_text() == "first"


def test_a_write_that_fails_keeps_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file.json", "old")

    def fail(_handle: int) -> None:
        raise OSError("broken disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken disk"):
        write_atomically(tmp_path / "file.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
