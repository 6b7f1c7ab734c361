"""State machine of one supervised process: started, ready, restarted after a crash, stopped.

Transitions:

    STARTING --ready file--> READY --crash--> WAITING --backoff--> STARTING
    STARTING --crash--> WAITING
    STARTING or READY --exit that is final--> ENDED
    WAITING --restarts disabled--> ENDED
    any state --request--> STOPPED
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from searchrl.local import process_guard

logger = logging.getLogger(__name__)

LOG_TAIL_LINES = 12  # of a message on a terminal: the last traceback lines, without filling the screen
CONFIGURATION_EXIT = 2  # the service refused its settings, and would refuse them again
HEALTHY_SECONDS = 60.0  # a service that ran this long starts with the shortest backoff after its next crash
LONGEST_BACKOFF_SECONDS = 30.0  # waits are 0.5, 1, 2, 4, 8, 16 and then 30 s: a fixed cause is noticed soon enough


class ProcessState(StrEnum):
    """States of a supervised process."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # crashed; the next start is scheduled
    ENDED = "ended"  # exited, and is not restarted
    STOPPED = "stopped"  # on request


@dataclass(slots=True)
class SupervisedProcess:
    """One process under its guard process. Not thread-safe: the supervisor holds its lock around every call.

    The exceptions are ``wait_until_gone``, which waits outside the lock, and ``log_tail``, which only reads a file.

    Attributes:
        grace_seconds: time between SIGTERM and SIGKILL.
        restarts_after_crash: False for a job that is meant to end.
        env_prefix: prefix of the service's settings; a restarted service keeps its ports.
        answer: content of the ready file; empty until ready.
        next_start: monotonic time of the scheduled restart; meaningful while waiting.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready_file: Path
    log_file: Path
    grace_seconds: float
    restarts_after_crash: bool = True
    env_prefix: str = ""
    state: ProcessState = ProcessState.STARTING
    answer: dict[str, object] = field(default_factory=dict)
    restarts: int = 0
    exit_code: int | None = None
    next_start: float = 0.0
    _started: float = 0.0
    _failures: int = 0
    _ports: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start the command under a guard process, in a session of its own."""
        # A file of an earlier process, which may have been killed, would make this one look ready at the old addresses.
        self.ready_file.unlink(missing_ok=True)
        environment = {**os.environ, **self.env, **self._ports}
        # ``-I`` (isolated): the guard must not import a module that the working directory or PYTHONPATH happens to
        # hold.
        command = [sys.executable, "-I", process_guard.__file__, str(self.grace_seconds), *self.argv]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                # Never written to. The kernel closes it when this process ends, however it ends, and the guard notices.
                # Other children do not inherit this end (PEP 446); a copy in one of them would keep the pipe open.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # A session of its own has a process group of its own, which can be killed as one; and Ctrl-C in the
                # terminal reaches only the supervisor, which stops the services in order.
                start_new_session=True,
            )
        self.state, self.answer, self.exit_code = ProcessState.STARTING, {}, None
        self._started = time.monotonic()

    def observe(self, now: float) -> bool:
        """Check the process and update the state; return whether the state changed."""
        before = self.state
        # First: the process of this state has ended, and its end has been handled already.
        if self.state is ProcessState.WAITING:
            if now >= self.next_start:
                self._spawn_again(now)
        elif self.alive:
            self._observe_alive(now)
        elif self.state in (ProcessState.STARTING, ProcessState.READY):
            self._observe_exit(now)
        return self.state is not before

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def guard_pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def disable_restarts(self) -> None:
        """Never start the command again; a scheduled restart is canceled."""
        self.restarts_after_crash = False
        if self.state is ProcessState.WAITING:
            self.state = ProcessState.ENDED

    def ask_to_stop(self) -> None:
        """Send SIGTERM; the guard process makes the command end within the grace period."""
        self.state = ProcessState.STOPPED
        if self._process is not None and self.alive:
            self._process.send_signal(signal.SIGTERM)

    def wait_until_gone(self) -> None:
        """Wait for the end of the stopped process.

        The guard process kills the command after the grace period; 5 s more, and the entire group is killed here.
        """
        if self._process is None:
            return
        try:
            self._process.wait(self.grace_seconds + 5.0)
        except subprocess.TimeoutExpired:
            self._kill_group()
            self._process.wait()
        self._clear_away()

    def log_tail(self) -> str:
        """Return the last lines of the log, for an error message."""
        with contextlib.suppress(OSError):
            lines = self.log_file.read_bytes().decode(errors="replace").splitlines()
            return "\n".join(lines[-LOG_TAIL_LINES:])
        return ""

    def _observe_alive(self, now: float) -> None:
        if self.state is ProcessState.STARTING:
            self.answer = _read_ready_file(self.ready_file)
            if self.answer:
                self._keep_ports()
                self.state = ProcessState.READY
        # Not at readiness: a service that crashes on each first request is ready in between, and would be restarted
        # after half a second forever.
        elif now - self._started > HEALTHY_SECONDS:
            self._failures = 0

    def _observe_exit(self, now: float) -> None:
        assert self._process is not None
        self.exit_code = self._process.returncode
        self._clear_away()
        # An exit code of 0 counts as a crash too: a service is not meant to end by itself.
        if not self.restarts_after_crash or self.exit_code == CONFIGURATION_EXIT:
            self.state = ProcessState.ENDED
            return
        self._schedule_start(now)
        self.state = ProcessState.WAITING

    def _spawn_again(self, now: float) -> None:
        try:
            self.spawn()
        except OSError:
            # A full disk or a full process table may be temporary. Raised here, the error would end the watching thread
            # and with it the restarts of every other process.
            logger.exception("%s cannot be started", self.name)
            self._schedule_start(now)
        else:
            self.restarts += 1

    def _schedule_start(self, now: float) -> None:
        # The exponent is bounded, because 2.0 ** 1024, reached after nine hours of failures, raises OverflowError.
        self.next_start = now + min(LONGEST_BACKOFF_SECONDS, 0.5 * 2.0 ** min(self._failures, 16))
        self._failures += 1

    def _keep_ports(self) -> None:
        """Keep the ports for a restart, so that callers find the service again."""
        for transport in ("http", "grpc"):
            _, _, port = str(self.answer.get(transport, "")).rpartition(":")
            if port and self.env_prefix:
                self._ports[f"{self.env_prefix}LISTEN__{transport.upper()}_PORT"] = port

    def _clear_away(self) -> None:
        """Kill what the ended command left in its process group, and close the pipe to the guard process."""
        assert self._process is not None
        # Also after a command that ended by itself: its worker processes, such as those of an engine, may have survived
        # it and hold a port or the GPU.
        self._kill_group()
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(OSError):  # the next ``spawn`` removes it too, or fails
            self.ready_file.unlink(missing_ok=True)

    def _kill_group(self) -> None:
        assert self._process is not None
        # The group's id is the guard's process id, because the guard leads its session. Usually nothing is left in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _read_ready_file(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
