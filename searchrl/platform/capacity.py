"""How much memory and disk a process of this machine or pod can have."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil

from searchrl.platform.findings import Finding, Verdict

CGROUP = Path("/sys/fs/cgroup")  # of this container where there is one, as version 2 mounts it


class Memory(NamedTuple):
    """Bytes of main memory."""

    total: int
    available: int


def main_memory() -> Memory:
    """The machine's memory, or less where the container has a limit."""
    machine = psutil.virtual_memory()
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is None:
        return Memory(machine.total, machine.available)
    return Memory(min(machine.total, limit), max(0, min(machine.available, limit - (used or 0))))


def check_disk(folder: Path, needed: int, what: str, low: Verdict = Verdict.FAILED) -> Finding:
    """Can ``needed`` more bytes be written into a folder, which may not exist yet?

    Args:
        what: needs the space; named in the advice.
        low: verdict where the space is too small.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return Finding("disk", Verdict.FAILED, f"{existing} is a file", "choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("disk", Verdict.FAILED, f"cannot write into {existing}", "choose another folder, or its owner")
    free = shutil.disk_usage(existing).free
    found = f"{size_text(free)} free in {existing}, {size_text(needed)} needed for {what}"
    if free < needed:
        return Finding("disk", low, found, "free some space or choose another folder")
    return Finding("disk", Verdict.OK, found)


def size_text(count: float) -> str:
    """Bytes for people: ``1.5 GiB``, ``700 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file or no limit (``max``)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
