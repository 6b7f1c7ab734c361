"""Script ``parent_death_signal.py PARENT_PID COMMAND...``: runs a command that gets SIGTERM when its parent dies.

The same could be done by a function between fork and exec (``preexec_fn``), but Python code in a forked child is not
safe while gRPC's threads run in the parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>; the setting survives exec


def exec_with_parent_death_signal(parent: int, command: list[str]) -> None:
    """Ask the kernel for SIGTERM when the parent dies (Linux only), then replace this process by the command.

    The parent is compared after the request, not before: a parent that died in between sends no signal any more, and
    this process then has another parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the request
        sys.exit(1)
    # exec keeps the process id, so whoever started this script waits for and signals the command itself.
    os.execv(command[0], command)


if __name__ == "__main__":
    exec_with_parent_death_signal(int(sys.argv[1]), sys.argv[2:])
