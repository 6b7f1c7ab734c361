"""Who stops a service when its supervisor is gone? This small process between the two. Standard library only.

Run as ``python -I warden.py GRACE_SECONDS COMMAND...`` in a session of its own. Its standard input is a pipe that the
supervisor holds open; the end of the pipe means that the supervisor died, however it died. Then, and on SIGTERM, the
command gets SIGTERM, and after the grace period its whole process group SIGKILL. The exit code is the command's.
"""

import os
import select
import signal
import subprocess
import sys
import time

LIFELINE = 0  # standard input
SIGNALLED = 128


def main() -> int:
    grace_seconds, command = float(sys.argv[1]), sys.argv[2:]
    woken = _wake_on_signals()
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127
    orphaned = _watch(child, woken, grace_seconds)
    if orphaned:
        os.killpg(0, signal.SIGKILL)  # nobody else is left to clear away what the command started
    return child.returncode if child.returncode >= 0 else SIGNALLED - child.returncode


def _watch(child: subprocess.Popen[bytes], woken: int, grace_seconds: float) -> bool:
    """Wait for the command's end; True when the supervisor died meanwhile."""
    watched = [LIFELINE, woken]
    orphaned = False
    kill_at: float | None = None
    while child.poll() is None:
        wait = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        readable, _, _ = select.select(watched, [], [], wait)
        asked = woken in readable and set(os.read(woken, 64)) & {signal.SIGTERM, signal.SIGINT}
        if LIFELINE in readable and not os.read(LIFELINE, 64):
            watched.remove(LIFELINE)
            orphaned = True
        if (asked or orphaned) and kill_at is None:
            child.terminate()
            kill_at = time.monotonic() + grace_seconds
        if kill_at is not None and time.monotonic() >= kill_at:
            os.killpg(0, signal.SIGKILL)
    return orphaned


def _wake_on_signals() -> int:
    """A descriptor that becomes readable when a signal arrived; it yields the signal's number."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing)
    return reading


if __name__ == "__main__":
    sys.exit(main())
