"""Measures the memory and disk space that a process on this machine or in this container can use."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil

from searchrl.platform.findings import Finding, FindingState

CGROUP = Path("/sys/fs/cgroup")  # where cgroup version 2 shows a container its own limits


class Memory(NamedTuple):
    """Bytes of main memory."""

    total: int
    available: int


def main_memory() -> Memory:
    """Return the machine's memory, or the container's limit if that is smaller."""
    machine = psutil.virtual_memory()
    # In a container psutil reads the machine's /proc/meminfo; a process that trusts it is killed at the cgroup's
    # limit. ``memory.current`` counts page cache too, which the kernel can reclaim, so the free memory below the
    # limit is a lower bound.
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is None:
        return Memory(machine.total, machine.available)
    # A limit may exceed the machine's memory, and other containers may use what the limit promises; so the smaller
    # one.
    return Memory(min(machine.total, limit), max(0, min(machine.available, limit - (used or 0))))


def check_disk(folder: Path, needed: int, what: str, low: FindingState = FindingState.FAILED) -> Finding:
    """Check that ``needed`` more bytes can be written into a folder, which need not exist yet.

    Args:
        what: what needs the space; named in the finding.
        low: state if the space is too small.
    """
    # The folder may be created later; its nearest existing parent is on the file system that will hold it.
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return Finding("disk", FindingState.FAILED, f"{existing} is a file", "choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "disk", FindingState.FAILED, f"cannot write into {existing}", "choose another folder, or its owner"
        )
    free = shutil.disk_usage(existing).free
    found = f"{size_text(free)} free in {existing}, {size_text(needed)} needed for {what}"
    if free < needed:
        return Finding("disk", low, found, "free some space or choose another folder")
    return Finding("disk", FindingState.OK, found)


def size_text(count: float) -> str:
    """Format a number of bytes for people: ``1.5 GiB``, ``700 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _number(path: Path) -> int | None:
    """Read the number in a file; None if there is no such file or no limit (``max``)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
