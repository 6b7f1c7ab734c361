"""Tell the trainer of this pod to save and end: ``python -m services.trainer.runs.stop_run --run DIR``.

Waits until it did. For places where another process gets SIGTERM, such as the head of a Ray cluster.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from services.trainer.runs.run_lock import Owner, RunLock

logger = logging.getLogger(__name__)


def stop_run(run: Path, seconds: float) -> bool:
    """Send SIGTERM to the owner of the run if it is in this pod; False if it did not end in time."""
    # The file names the last owner, whose process id may belong to another process by now. A lock that is held shows
    # that the owner still runs, so signals are sent only then.
    lock, here = RunLock(run), Owner.of_this_process()
    owner = lock.owner()
    if owner is None or owner.host != here.host or not run.is_dir():
        return True
    deadline = time.monotonic() + seconds
    while not lock.try_acquire():
        if time.monotonic() > deadline:
            return False
        try:
            os.kill(owner.pid, signal.SIGTERM)
        except ProcessLookupError:
            return True
        time.sleep(0.5)  # the end of the run is noticed at most this late
    lock.release()
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 no process of this pod trains the run, 1 one still does."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.runs.stop_run", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--seconds", type=float, default=100.0, help="how long to wait")
    arguments = parser.parse_args(argv)
    return 0 if stop_run(arguments.run, arguments.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
