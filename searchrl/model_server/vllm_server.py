"""Runs a vLLM server: starts it, waits for a first generation, restarts it if it is lost, and stops it.

Everything runs in the service's event loop. After ``start``, only one task (``_watch``) ends and restarts the process.
``stop`` cancels that task before it ends the process itself, so the two never act at the same time.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from searchrl.errors import ConfigurationError, InvalidRequest, ServiceError
from searchrl.model_server.vllm_command import VllmCommand
from searchrl.platform import parent_death_signal
from searchrl.platform.owner_thread import FailureWatch, run_rounds
from searchrl.platform.retry import RetryPolicy

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # readiness is noticed at most this late
WATCH_SECONDS = 5.0  # between health checks; the end of the process is noticed at once
FAILED_CHECKS_BEFORE_RESTART = 6
"""In a row: a restart after 30 s, or up to 90 s if each check times out. Fewer would restart a server that is busy."""
FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0
"""Pauses before restarts double from the first to this, until a start succeeds. A longer one delays the recovery, a
shorter one spends the machine on a server that cannot start."""
KILL_MARGIN_SECONDS = 10.0
"""Time to exit after SIGTERM, beyond ``shutdown_seconds`` for its requests; then the process group is killed."""
WATCH = "watch of the model server"
_PARENT_DEATH_SIGNAL = parent_death_signal.__file__


@dataclass(frozen=True, slots=True)
class Listener:
    """Callbacks for when the server is lost, and when it answers again."""

    on_lost: Callable[[str], None]
    on_ready: Callable[[], None]


class StartedServer(Protocol):
    """A server that a service starts itself: ``VllmServer``, or one with its methods for another machine."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def restart(self, reason: str) -> None: ...


class VllmServer:
    """One ``vllm serve`` process in a process group of its own, with its output in a file.

    ``probe`` makes one real generation. First generations are slow, so the server is ready only after one.
    """

    def __init__(
        self,
        command: VllmCommand,
        *,
        probe: Callable[[], Awaitable[object]],
        listener: Listener,
        first_backoff_seconds: float = FIRST_BACKOFF_SECONDS,
    ) -> None:
        self._command = command
        self._settings = command.settings
        self._probe = probe
        self._listener = listener
        self._restarts = RetryPolicy(first_seconds=first_backoff_seconds, max_seconds=MAX_BACKOFF_SECONDS)
        # Kept between rounds of ``_watch``: only a start that succeeds resets it.
        self._failed_starts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._restart_reason = ""
        self._restart_wanted = asyncio.Event()
        self._http = httpx.AsyncClient(trust_env=False, timeout=10.0)  # of a health check; a busy server answers late
        self.up = False

    async def start(self) -> None:
        """Return once the server has generated.

        Raises:
            ConfigurationError: it ended or answered with an error at start: the settings or the model are wrong.
        """
        try:
            await self._launch()
        except (ServiceError, OSError) as error:
            raise ConfigurationError(f"vLLM cannot serve {self._settings.model}: {error}") from error
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Let requests in flight finish, then end the process; kill it if it does not end."""
        if self._watching is not None:
            # The watch first: it would take the ending process for a lost one and start another.
            self._watching.cancel()
            await asyncio.wait({self._watching})
        self.up = False
        await self._terminate(self._settings.shutdown_seconds + KILL_MARGIN_SECONDS)
        await self._http.aclose()

    def restart(self, reason: str) -> None:
        """Have the process replaced, as if it were lost; for a server that answers and cannot be used."""
        self._restart_reason = reason
        self._restart_wanted.set()

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none."""
        return None if self._process is None else self._process.pid

    async def _launch(self) -> None:
        arguments = self._command.arguments()
        self._settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        # Appended, so that a restart keeps the log of the server that was lost. The child has its own copy of the file
        # descriptor; ours is closed at the end of the block.
        with self._settings.log_file.open("ab") as log:
            # parent_death_signal lets the kernel send SIGTERM to vLLM when this process dies, also by SIGKILL
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", _PARENT_DEATH_SIGNAL, str(os.getpid())),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._command.environment(),
                # A session of its own is a process group of its own: Ctrl-C reaches only us, so that requests are
                # drained first, and ``killpg`` reaches vLLM's workers and not us.
                start_new_session=True,
            )
        logger.info("model server started", extra={"data": {"pid": self._process.pid, "port": self._command.port}})
        started = time.monotonic()
        async with contextlib.AsyncExitStack() as unready:  # ends a process that does not become ready
            unready.push_async_callback(self._terminate, KILL_MARGIN_SECONDS)
            await self._wait_until_ready(self._process, started + self._settings.start_seconds)
            unready.pop_all()
        self.up = True
        logger.info("model server ready", extra={"data": {"seconds": round(time.monotonic() - started, 1)}})

    async def _wait_until_ready(self, process: asyncio.subprocess.Process, deadline: float) -> None:
        # No log line is parsed: /health answers once the engine is loaded, and an exit code ends the wait at once.
        while not await self._is_healthy():
            if process.returncode is not None:
                raise ServiceError(
                    f"it ended with code {process.returncode} while starting; {self._settings.log_file} ends with: "
                    f"{last_error_line(self._settings.log_file)}"
                )
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"it was not ready within {self._settings.start_seconds:g} s; see {self._settings.log_file}"
                )
            await asyncio.sleep(POLL_SECONDS)
        try:
            await self._probe()
        except InvalidRequest as error:
            raise ServiceError(f"its first generation was refused: {error}") from error

    async def _is_healthy(self) -> bool:
        try:
            return (await self._http.get(f"{self._command.base_url}/health")).is_success
        except httpx.HTTPError:
            return False

    async def _watch(self) -> None:
        """Watch and restart the server until cancelled; an error in one round does not end the next."""
        await run_rounds(self._replace_when_lost, POLL_SECONDS, FailureWatch(WATCH))

    async def _replace_when_lost(self) -> None:
        reason = await self._wait_until_lost()
        # 1, 2, 4, ..., 60 s while starts fail: after a failed ``_launch`` the next round finds no process, and comes
        # here again at once.
        backoff = self._restarts.longest_pause(self._failed_starts + 1)
        self._failed_starts += 1  # until this one has succeeded
        self.up = False
        # Reported before the old process is ended, which may take ``KILL_MARGIN_SECONDS``.
        self._listener.on_lost(reason)
        logger.error("model server lost", extra={"data": {"reason": reason, "restart_in_seconds": backoff}})
        # A server that does not answer may still hold GPU memory, with which the next one could not start.
        await self._terminate(KILL_MARGIN_SECONDS)
        self._restart_wanted.clear()  # only now: whoever asked for it meanwhile wanted the process that has ended
        await asyncio.sleep(backoff)
        try:
            await self._launch()
        except (ServiceError, ConfigurationError, OSError) as error:
            logger.error("model server could not be restarted", extra={"data": {"reason": str(error)}})
            return
        self._failed_starts = 0
        self._listener.on_ready()

    async def _wait_until_lost(self) -> str:
        process = self._process
        if process is None:
            return "the model server is not running"
        # Only the waits are tasks, and are cancelled at the end; the process itself goes on.
        ended = asyncio.create_task(process.wait())
        wanted = asyncio.create_task(self._restart_wanted.wait())
        failed_checks = 0
        try:
            while failed_checks < FAILED_CHECKS_BEFORE_RESTART:
                await asyncio.wait({ended, wanted}, timeout=WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    return f"the model server ended with code {process.returncode}"
                if wanted.done():
                    return self._restart_reason
                failed_checks = 0 if await self._is_healthy() else failed_checks + 1
            return "the model server does not answer"
        finally:
            ended.cancel()
            wanted.cancel()

    async def _terminate(self, seconds: float) -> None:
        """Send SIGTERM, and SIGKILL to the process group after ``seconds``, or at once if this is cancelled."""
        process = self._process
        if process is None:
            return
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):  # workers that outlive their server would keep its GPU memory
                os.killpg(process.pid, signal.SIGKILL)
        # Until it has ended, its port and its GPU memory are taken.
        await process.wait()
        # Only now: if this is cancelled before, ``stop`` still finds the process and waits for it.
        self._process = None


def last_error_line(log_file: Path) -> str:
    """Return the line of a log that most likely names the error; "nothing" if there is none."""
    try:
        lines = log_file.read_text(errors="replace").splitlines()[-200:]
    except OSError:
        return "nothing"
    # the last matching line: Python prints the error that ended the process after the traceback
    lines = [line.strip() for line in lines if line.strip()]
    candidates = [line for line in lines if "Error" in line and "Traceback" not in line]
    return (candidates or lines or ["nothing"])[-1][:300]
