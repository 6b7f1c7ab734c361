"""Ask the trainer of this pod to save and exit: ``python -m services.trainer.runs.stop_run --run DIR``.

Waits until it has exited. For pods in which another process receives SIGTERM, such as the head of a Ray cluster.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from services.trainer.runs.run_lock import LockOwner, RunLock

logger = logging.getLogger(__name__)


def stop_run(run: Path, seconds: float) -> bool:
    """Send SIGTERM to the owner of the run if it is in this pod; False if it did not end in time.

    An owner on another host is left running, which the log says.

    The lock file names the last owner, whose process id may belong to another process by now, also while the next owner
    holds the lock and has not written its name yet. So a signal is sent only to the very process that wrote the file.
    """
    lock, here = RunLock(run), socket.gethostname()
    deadline = time.monotonic() + seconds
    while (held := lock.is_held()) is not False:
        owner = lock.owner()  # read again each time: the next process may have taken over the run
        if owner is not None and owner.host != here:
            logger.warning(
                "the run in %s belongs to process %d on %s: it continues, because it cannot be stopped from %s",
                run, owner.pid, owner.host, here,
            )  # fmt: skip
            return True
        if held is None and (owner is None or _has_ended(owner)):
            return True
        if time.monotonic() > deadline:
            logger.warning("the run in %s did not end within %.0f s", run, seconds)
            return False
        if owner is not None and owner.still_runs():
            # Sent in every round, because the owner may have changed since. The trainer's handler only sets an event,
            # so a further signal while it saves changes nothing; after it has saved, it ignores the signal.
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner.pid, signal.SIGTERM)
        time.sleep(0.5)  # the end of the run is noticed at most this late
    return True


def _has_ended(owner: LockOwner) -> bool:
    """Return whether this process of this machine is known to have ended."""
    if owner.started is not None:
        return not owner.still_runs()
    try:
        os.kill(owner.pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 no process of this pod trains the run, 1 one still does."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.runs.stop_run", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    # A preStop hook is part of the grace period, which is 120 s for a training pod: 20 s remain for the containers to
    # end after SIGTERM.
    parser.add_argument("--seconds", type=float, default=100.0, help="how long to wait")
    arguments = parser.parse_args(argv)
    return 0 if stop_run(arguments.run, arguments.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
