"""Runs services as processes on one machine: starts, watches, restarts and stops them.

Threads: callers start and stop processes from any thread; one watching thread observes all processes every
``POLL_SECONDS`` and restarts what crashed. A condition guards every process's state and wakes callers that wait for a
change. ``on_change`` is called without that lock, so that it may call the supervisor.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from searchrl.errors import ConfigurationError
from searchrl.local.supervised_process import ProcessState, SupervisedProcess

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # smaller: a ready or crashed process is noticed sooner; each look costs a system call or two


class ServiceFailed(Exception):
    """A supervised process ended unexpectedly; the message holds the end of its log."""

    def __init__(self, name: str, exit_code: int | None, log_tail: str) -> None:
        super().__init__(f"{name} ended with exit code {exit_code}; the end of its log:\n{log_tail}")
        self.name = name
        self.exit_code = exit_code
        self.log_tail = log_tail


class Supervisor:
    """Runs named processes with logs in ``folder/logs``; restarts crashed ones; stops all of them when closed.

    Each process runs in a session of its own under a guard process (see ``process_guard``), so that it ends even if
    this process is killed. Methods may be called from any thread.
    """

    def __init__(
        self, folder: Path, *, grace_seconds: float = 25.0, on_change: Callable[[], None] | None = None
    ) -> None:
        """``on_change`` is called after a process changed its state, by the watching thread or the one that stops it.

        An OSError that it raises, such as that of a full disk, is logged.
        ``grace_seconds`` lies above the 10 s in which services on one machine drain, with time for their shutdown.
        """
        self.folder = folder
        self._grace_seconds = grace_seconds
        self._on_change = on_change
        self._processes: dict[str, SupervisedProcess] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "ready").mkdir(exist_ok=True)

    def start(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        ready_file: Path | None = None,
        *,
        restart: bool = True,
        env_prefix: str = "",
    ) -> None:
        """Start ``argv``; ``env`` is added to this process's environment.

        Args:
            ready_file: written by the process once ready; None: ``folder/ready/<name>.json``.
            restart: restart after a crash, with backoff; False for a job that is meant to end.
            env_prefix: prefix of the service's settings, with which a restarted service keeps its ports.

        Raises:
            ConfigurationError: a process with this name is running.
            OSError: its log cannot be written, or no process can be started.
        """
        process = SupervisedProcess(
            name=name,
            argv=tuple(argv),
            env=dict(env or {}),
            ready_file=ready_file or self.ready_file(name),
            log_file=self.log_file(name),
            grace_seconds=self._grace_seconds,
            restarts_after_crash=restart,
            env_prefix=env_prefix,
        )
        with self._changed:
            if name in self._processes and self._processes[name].alive:
                raise ConfigurationError(f"{name} is running already")
            process.spawn()
            self._processes[name] = process  # after the start: if it fails, there is no process to watch
            # At the first start. The thread is a daemon: a program that forgets to close the supervisor can still end,
            # and the guard processes then stop what it started.
            if not self._watcher.is_alive() and not self._closing.is_set():
                self._watcher.start()

    def ready_file(self, name: str) -> Path:
        """Path of the file that ``name`` is expected to write when it is ready."""
        return self.folder / "ready" / f"{name}.json"

    def log_file(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def wait_ready(self, name: str, timeout: float) -> dict[str, object]:
        """Wait for the ready file and return its content: ``{"http": "host:port", "grpc": "host:port", "pid": 1}``.

        Raises:
            ServiceFailed: the process ended before it was ready.
            TimeoutError: it was not ready in time; the process continues.
        """
        process = self._process(name)
        # WAITING counts as failed: a service that crashes in its first start most likely crashes again, and its log is
        # shown now instead of after the timeout.
        settled = (ProcessState.READY, ProcessState.WAITING, ProcessState.ENDED, ProcessState.STOPPED)
        with self._changed:
            if not self._changed.wait_for(lambda: process.state in settled, timeout):
                raise TimeoutError(f"{name} was not ready within {timeout:g} s; see {process.log_file}")
            if process.state is not ProcessState.READY:
                raise ServiceFailed(name, process.exit_code, process.log_tail())
            return dict(process.answer)

    def wait(self, name: str, timeout: float | None = None) -> int:
        """Wait for the end of a job and return its exit code.

        Raises:
            TimeoutError: it is still running.
        """
        process = self._process(name)
        over = (ProcessState.ENDED, ProcessState.STOPPED)
        with self._changed:
            # STOPPED is set when the process is asked to stop, which is before it has ended.
            if not self._changed.wait_for(lambda: process.state in over and not process.alive, timeout):
                raise TimeoutError(f"{name} is still running after {timeout:g} s")
            return process.exit_code if process.exit_code is not None else 0

    def stop(self, name: str) -> None:
        """Send SIGTERM, then SIGKILL after the grace period; returns when the process has ended."""
        process = self._process(name)
        with self._changed:
            process.ask_to_stop()
        # Outside the lock: waiting takes up to the grace period and 5 s more, and the watching thread needs the lock.
        self._wait_until_gone(process)

    def stop_all(self) -> None:
        """Stop everything, last started first, so that a process outlives those that call it.

        Restarts are disabled first, so that no process is started again meanwhile.
        """
        with self._changed:
            # The evaluator calls the generator, which calls the retriever: stopped in the other order, requests in
            # flight would fail.
            processes = list(reversed(self._processes.values()))
            for process in processes:
                process.disable_restarts()
        for process in processes:
            self.stop(process.name)

    def restart(self, name: str) -> None:
        """Stop a process and start it again with the same arguments and, given ``env_prefix``, the same ports."""
        process = self._process(name)
        self.stop(name)
        with self._changed:
            process.restarts += 1
            process.spawn()
            self._changed.notify_all()

    def processes(self) -> dict[str, SupervisedProcess]:
        """The supervised processes by name, in the order of their start."""
        with self._changed:
            return dict(self._processes)

    def close(self) -> None:
        """Stop everything and end the watching thread."""
        self.stop_all()
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _process(self, name: str) -> SupervisedProcess:
        with self._changed:
            if name not in self._processes:
                raise KeyError(f"no process named {name!r}; known: {', '.join(self._processes) or 'none'}")
            return self._processes[name]

    def _wait_until_gone(self, process: SupervisedProcess) -> None:
        process.wait_until_gone()
        with self._changed:
            self._changed.notify_all()
        self._report()

    def _watch(self) -> None:
        while not self._closing.wait(POLL_SECONDS):
            now = time.monotonic()
            with self._changed:
                changed = [process for process in self._processes.values() if process.observe(now)]
                if changed:
                    self._changed.notify_all()
            for process in changed:
                logger.info("%s is %s (exit code %s)", process.name, process.state, process.exit_code)
            if changed:
                self._report()

    def _report(self) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change()
        except OSError:
            # Raised here, it would end the watching thread, or the stop before the remaining processes are stopped.
            logger.exception("the change of a process could not be recorded")
