"""Tells a process from a later one with the same id, by the time at which it started."""

import psutil

CLOCK_TOLERANCE_SECONDS = 2.0
"""A system clock may be adjusted between two readings; ids are not reused that soon."""


def started_at() -> float:
    """Return when this process started, in seconds since the epoch."""
    return psutil.Process().create_time()


def is_running(pid: int, started: float) -> bool:
    """Return whether the process with this id and this start time (seconds since the epoch) is still running."""
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < CLOCK_TOLERANCE_SECONDS
        # A zombie has ended, but keeps its id until its parent reads the exit code.
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
