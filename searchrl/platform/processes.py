"""Ends a program on SIGTERM and leaves the message that a pod's status shows; recognizes a process by its start time.

A job's command is process 1 of its container, for which the kernel ignores SIGTERM unless the process installs a
handler. If the signal arrives before the work is done, the command exits with ``SIGTERM_EXIT``; job manifests ignore
that code, so that evictions and deletions do not count as failures, and the next pod resumes the work.
"""

import contextlib
import signal
import sys
from pathlib import Path
from types import FrameType

import psutil

SIGTERM_EXIT = 143  # 128 + SIGTERM, as a shell reports it
TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes mounts this file into every container; outside a container it does not exist."""
CLOCK_TOLERANCE_SECONDS = 2.0
"""A system clock may be adjusted between two readings; ids are not reused that soon."""


class Interrupted(SystemExit):
    """Raised in the main thread by SIGTERM; ends the process with ``SIGTERM_EXIT``."""

    def __init__(self) -> None:
        super().__init__(SIGTERM_EXIT)


def exit_on_sigterm() -> None:
    """From now on SIGTERM unwinds the main thread, so that files are closed and locks released."""
    # Python runs the handler in the main thread, between two bytecodes; during a long call into native code it runs
    # only after that call has returned.
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def write_termination_message(sentence: str) -> None:
    """Write the sentence to standard error and, inside a container, to the termination log of Kubernetes.

    ``kubectl describe pod`` shows it for a failed process.
    """
    sys.stderr.write(f"{sentence}\n")
    if TERMINATION_LOG.is_file():
        # The message is on standard error already; a failure to copy it must not replace the process's own exit code.
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(f"{sentence}\n")


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
