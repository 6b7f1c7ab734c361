"""Chooses the journal of the result store: SQLite's write-ahead log is fast, but unsafe on a network file system.

The log's index is memory shared through a mapped file, which a network file system does not keep equal on two machines.
"""

import os
import sqlite3
from enum import StrEnum
from pathlib import Path

# Names as the kernel reports them. A name that is missing here costs speed only: its store gets the rollback journal.
LOCAL_FILE_SYSTEMS = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
MOUNTS = Path("/proc/self/mountinfo")


class Journal(StrEnum):
    """Values of the setting ``journal``."""

    AUTO = "auto"
    WAL = "wal"
    ROLLBACK = "rollback"


def choose_journal(path: Path, wanted: Journal, mounts: Path = MOUNTS) -> Journal:
    """The journal for a store at ``path``: ``auto`` is the log on a file system known to be local, else rollback."""
    if wanted is not Journal.AUTO:
        return wanted
    return Journal.WAL if _find_file_system(path, mounts) in LOCAL_FILE_SYSTEMS else Journal.ROLLBACK


def apply_journal(connection: sqlite3.Connection, journal: Journal) -> None:
    """Switch the store to a journal; a commit survives a killed process with both.

    Raises:
        sqlite3.Error: the file cannot be written, or another process uses it.
    """
    # With the log, NORMAL flushes at checkpoints only: a power failure may lose the last commits, but damages nothing.
    # A rollback journal needs FULL, because without the flush a power failure can damage the file.
    if journal is Journal.WAL:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    else:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")


def _find_file_system(path: Path, mounts: Path) -> str:
    """Type of the file system that holds ``path``, from the mount with the longest matching path; empty if unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    # The folder, because the file may not exist yet; resolved, because mount points are.
    folder = os.path.realpath(path.parent)
    best, found = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        # A line is "36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/sda1 rw" (proc(5)): the mount point
        # is the fifth field, with a space written as \040; the type is the first field after " - ".
        fields = before.split()
        if len(fields) < 5 or not after.split():
            continue
        mount = fields[4].replace("\\040", " ")
        covers = folder == mount or folder.startswith(mount.rstrip("/") + "/")
        if covers and len(mount) >= len(best):  # the later of two mounts at one place hides the earlier
            best, found = mount, after.split()[0]
    return found
