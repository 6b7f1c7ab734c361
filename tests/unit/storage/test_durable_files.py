"""Files are replaced atomically and flushed before they get their names; locks and full disks are recognized."""

import errno
import os
from hashlib import sha256
from pathlib import Path

import pytest

from searchrl.storage import durable_files
from searchrl.storage.durable_files import (
    FileRecord,
    atomic_path,
    atomic_write,
    file_record,
    is_disk_full,
    rename_durably,
    try_lock,
)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for text in ("old", "naïve 北京"):
        atomic_write(tmp_path / "file.json", text)
    assert (tmp_path / "file.json").read_text(encoding="utf-8") == "naïve 北京"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_the_content_is_on_disk_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flushed = tmp_path / "file.json", list[tuple[int, bool]]()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append((os.fstat(handle).st_ino, path.exists())))
    atomic_write(path, "text")
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_two_writers_have_temporary_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "file.json", Path.replace

    def replace(temporary: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", rename)
        atomic_write(path, "second")  # while the first is about to be renamed
        return rename(temporary, target)

    monkeypatch.setattr(Path, "replace", replace)
    atomic_write(path, "first")
    assert path.read_text() == "first"


def test_a_write_that_fails_keeps_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "file.json", "old")

    def fail(_handle: int) -> None:
        raise OSError("broken disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken disk"):
        atomic_write(tmp_path / "file.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_fixed_temporary_name_overwrites_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".file.bin.tmp").write_bytes(b"the remains of a killed process")
    with atomic_path(tmp_path / "file.bin", unique=False) as part:
        part.write_bytes(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file.bin", b"new")]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_renamed_folder_file_or_link_keeps_its_name_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    part, target = tmp_path / ".part", tmp_path / "name"
    if kind == "folder":
        part.mkdir()
    elif kind == "file":
        part.touch()
        target.touch()  # the old one is replaced
    else:
        part.symlink_to("new")
        target.symlink_to("old")
    flushed: list[tuple[Path, bool]] = []
    monkeypatch.setattr(durable_files, "fsync_path", lambda path: flushed.append((path, os.path.lexists(part))))
    rename_durably(part, target)
    assert os.path.lexists(target) and flushed == [(tmp_path, False)]
    assert kind != "link" or os.readlink(target) == "new"


def test_blocks_are_written_one_after_the_other(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file.bin", iter([b"one ", b"two"]), durable=False)
    assert file_record(tmp_path / "file.bin") == FileRecord(7, sha256(b"one two").hexdigest())


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert try_lock(first)
        assert not try_lock(second) and not try_lock(second, shared=True)
        first.close()
        assert try_lock(second)


def test_a_file_system_without_locks_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable_files.fcntl, "flock", flock)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="No locks"):
        try_lock(file)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (ValueError("IoError: No space left on device (28)"), True),
        (RuntimeError("I/O error (os error 122)"), True),
        (OSError(errno.EIO, "broken"), False),
        (ValueError("header too large"), False),
    ],
)
def test_a_full_disk_is_recognized_by_number_or_message(error: Exception, is_full: bool) -> None:
    assert is_disk_full(error) is is_full
