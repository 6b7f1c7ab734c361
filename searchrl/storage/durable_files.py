"""Writes files so that a reader or a power cut finds the old content or the complete new one; checksums and locks.

Two guarantees are kept apart. *Atomic*: a reader sees the old file or the new one, never a part, because the new file
is written beside the old one and renamed to its name. *Durable*: both survive a power cut, because the content is
flushed (fsync) before the rename, which alone may reach the disk first, and the folder after it.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from searchrl.errors import Unavailable

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No space on the device, and no space left in the quota of the user or project."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What flock raises on a file system without locks; any other error means that the lock is held."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and checksum of a file, as manifests record them."""

    bytes: int
    sha256: str


def atomic_write(path: Path, content: str | bytes | Iterable[bytes], *, durable: bool = True) -> None:
    """Replace the content of ``path`` (text as UTF-8; blocks one after the other); see ``atomic_path``."""
    # The file is closed before the block of ``atomic_path`` ends: its buffer is written out before fsync and rename.
    with atomic_path(path, durable=durable) as temporary, temporary.open("xb") as file:
        if isinstance(content, str):
            content = content.encode()
        for block in (content,) if isinstance(content, bytes) else content:
            file.write(block)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True, unique: bool = True) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; the file there is renamed to ``path`` at the end of the block.

    If the block raises, the written file is removed, and ``path`` keeps its content.

    Args:
        durable: flush the content before the rename, and the folder after it. Without it the file is only atomic, for
            content that need not survive a power cut.
        unique: give each call a temporary name of its own, so that two processes that write the same path do not mix
            their contents. Without it, the next call overwrites what a killed process left; for large files of which
            only one process is the writer.
    """
    unique_part = f"{os.getpid()}-{secrets.token_hex(4)}." if unique else ""
    # Beside the target, because a rename is atomic only inside one file system; hidden, so that manifests and listings
    # pass over what a killed process leaves.
    temporary = path.with_name(f".{path.name}.{unique_part}tmp")
    try:
        if not unique:
            temporary.unlink(missing_ok=True)
        yield temporary
        if durable:
            # Before the rename: a file system may write the new name to disk before the content. After a power cut the
            # file would then exist and be empty.
            fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # absent after a success
    if durable:
        fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk: a rename is durable once its folder is flushed."""
    # A descriptor for reading is enough for fsync, and a folder cannot be opened for writing.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folders(folder: Path, names: Iterable[str]) -> None:
    """Flush ``folder`` and its sub-folders that lead to the files ``names``: a file is found only if they all are."""
    for parent in {parent for name in names for parent in Path(name).parents}:
        fsync_path(folder / parent)


def read_complete_lines(path: Path) -> list[bytes]:
    """Read a file to which another process may be appending, without a last line that has no end yet."""
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    return complete.split(b"\n") if complete else []


def rename_durably(path: Path, target: Path) -> None:
    """Give a complete folder, file or link its name ``target``, which survives a power cut from then on.

    The content must have been flushed before, or the name could survive without it. A file or link of that name is
    replaced; a folder of that name must be empty.
    """
    path.rename(target)
    fsync_path(target.parent)


def sha256_file(path: Path) -> str:
    """Compute the SHA-256 of a file, in blocks, so that the file may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path) -> FileRecord:
    """Measure size and checksum of a file."""
    return FileRecord(path.stat().st_size, sha256_file(path))


def content_key(parts: Mapping[str, object]) -> str:
    """Hash what a content depends on: equal parts give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def try_lock(file: IO[str] | IO[bytes] | int, *, shared: bool = False) -> bool:
    """Take the kernel's lock (flock) of an open file without waiting; return False if another process holds it.

    The kernel releases the lock when the file is closed or the process ends, however it ends, so no lock is ever stale.
    A shared lock excludes exclusive ones only.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        # flock, not lockf (POSIX): a process loses POSIX locks on a file as soon as it closes any descriptor of it.
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def explain_disk_full(what: str, advice: str, *foreign: type[Exception]) -> Iterator[None]:
    """Turn "no space left" inside the block into an error that says what was written and what to do.

    ``foreign`` are further exceptions that a library raises for it. Other errors pass unchanged.

    Raises:
        Unavailable: the disk or the quota is full.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, *foreign) as error:
        if not is_disk_full(error):
            raise
        raise Unavailable(f"no space left for {what}; {advice}", retry_after_seconds=None) from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether the error means that no space is left on the disk, or in a quota.

    Libraries written in other languages pass on only the system's message (tantivy, FAISS) or number (safetensors).
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL_DISK
    text = str(error)
    # The form in which Rust's standard library prints an error of the system.
    found = re.search(r"\(os error (\d+)\)", text)
    return (found is not None and int(found[1]) in FULL_DISK) or any(os.strerror(code) in text for code in FULL_DISK)
