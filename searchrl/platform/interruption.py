"""How does a command that can be continued end when it is told to stop?

A command of a job runs as process 1 of its container, which ignores SIGTERM unless it says otherwise. Ended by a
signal before its work was done it exits with ``INTERRUPTED``; job manifests ignore that code, so that evictions and
deletions do not count as failures, and the next pod continues.
"""

import signal
from types import FrameType

INTERRUPTED = 143  # 128 + SIGTERM


class Interrupted(SystemExit):
    """Raised in the main thread by SIGTERM; ends the process with ``INTERRUPTED``."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


def exit_on_sigterm() -> None:
    """From now on SIGTERM unwinds the main thread, so that files are closed and locks given back."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted
