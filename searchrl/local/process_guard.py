"""Guard process between a supervisor and a service, which stops the service if the supervisor dies.

Run as ``python -I process_guard.py GRACE_SECONDS COMMAND...`` in a session of its own; standard library only, so that
it starts fast and stays small. Its standard input is a pipe that the supervisor holds open: the end of the pipe means
that the supervisor has died, for whatever reason. Then, and on SIGTERM, the command gets SIGTERM, and after the grace
period the entire process group gets SIGKILL. The exit code is the command's.
"""

import os
import select
import signal
import subprocess
import sys
import time

LIFELINE = 0  # standard input
SIGNAL_EXIT = 128  # a command that a signal ended exits with 128 + its number, as in a shell


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
        os.killpg(0, signal.SIGKILL)  # no supervisor is left to end what the command started
    return child.returncode if child.returncode >= 0 else SIGNAL_EXIT - child.returncode


def _watch(child: subprocess.Popen[bytes], woken: int, grace_seconds: float) -> bool:
    """Wait for the command's end; return whether the supervisor died meanwhile.

    One ``select`` waits for the pipe, for signals (through the wakeup descriptor; SIGCHLD among them, for the command's
    end) and, once the command was asked to stop, for the end of the grace period.
    """
    # A ``select`` that a signal interrupts is continued (PEP 475), so handlers that only set a flag would not wake it.
    # The wakeup descriptor does: Python's C handler writes the signal's number to it.
    watched = [LIFELINE, woken]
    orphaned = False
    kill_at: float | None = None
    while child.poll() is None:
        wait = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        readable, _, _ = select.select(watched, [], [], wait)
        asked = woken in readable and set(os.read(woken, 64)) & {signal.SIGTERM, signal.SIGINT}
        # Reading zero bytes means the end of the pipe. A pipe at its end is readable forever, so it is not watched any
        # more; ``select`` would return at once, again and again.
        if LIFELINE in readable and not os.read(LIFELINE, 64):
            watched.remove(LIFELINE)
            orphaned = True
        if (asked or orphaned) and kill_at is None:
            child.terminate()
            kill_at = time.monotonic() + grace_seconds
        # Group 0 is this process's own, with everything that the command started in it. The signal ends this process
        # too; the supervisor then reads -9 as the exit code.
        if kill_at is not None and time.monotonic() >= kill_at:
            os.killpg(0, signal.SIGKILL)
    return orphaned


def _wake_on_signals() -> int:
    """Return a descriptor that becomes readable when a signal arrives, and yields its number.

    The Python handlers do nothing, but without them a signal would take its default action and write no number.
    """
    reading, writing = os.pipe()
    # As ``set_wakeup_fd`` requires: a handler that blocks on a full pipe would never return to the loop that empties
    # it.
    os.set_blocking(writing, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing)
    return reading


if __name__ == "__main__":
    sys.exit(main())
