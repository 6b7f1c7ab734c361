"""Runs a vLLM server: starts it, waits for a first generation, restarts it if it is lost, and stops it.

Everything runs in the service's event loop. After ``start``, only one task (``_watch``) ends and restarts the process.
``stop`` cancels that task before it ends the process itself, so the two never act at the same time.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from searchrl.errors import ConfigurationError, InvalidRequest, ServiceError
from searchrl.platform import parent_death_signal
from searchrl.platform.owner_thread import FailureWatch, run_rounds
from searchrl.tokenization.chat_template import find_chat_template
from services.generator.engines.settings import VllmSettings

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
# Not passed to vLLM: our settings, which contain keys; variables that would make its Python load our packages; and
# variables that enable routes by which a client can change the model.
_NOT_INHERITED = (
    "GENERATOR_",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
)


@dataclass(frozen=True, slots=True)
class VllmCommand:
    """The command line of a server that listens on ``port`` of the loopback interface only.

    The routes of vLLM's development mode can replace weights, so it stays off: this model is frozen.
    """

    settings: VllmSettings
    port: int

    @property
    def served_name(self) -> str:
        """The model's name in the API."""
        return self.settings.served_name or Path(self.settings.model).name

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def arguments(self) -> list[str]:
        """Return the command line.

        Raises:
            ConfigurationError: the executable does not exist.
        """
        settings = self.settings
        # Resolved here, because ``parent_death_signal`` uses execv, which does not search PATH.
        found = shutil.which(str(settings.executable))
        if found is None:
            raise ConfigurationError(
                f"engine.vllm.executable: no command {settings.executable}; run `make install-vllm` or name another"
            )
        flags = {
            "--served-model-name": self.served_name,
            "--host": HOST,
            "--port": str(self.port),
            "--dtype": settings.dtype,
            "--max-num-seqs": str(settings.max_num_seqs),
            "--shutdown-timeout": str(settings.shutdown_seconds),
            # Ignore the model's sampling defaults (generation_config.json): the request alone decides.
            "--generation-config": "vllm",
        }
        if settings.max_model_len is not None:
            flags["--max-model-len"] = str(settings.max_model_len)
        if settings.tensor_parallel_size > 1:
            flags["--tensor-parallel-size"] = str(settings.tensor_parallel_size)
        # The CPU backend has no GPU memory to divide; it takes its cache's size from VLLM_CPU_KVCACHE_SPACE.
        if not settings.cpu_kv_cache_gib:
            flags["--gpu-memory-utilization"] = f"{settings.gpu_memory_utilization:g}"
        if settings.chat_template is not None:
            flags["--chat-template"] = str(settings.chat_template)
        eager = ["--enforce-eager"] if settings.enforce_eager else []
        return [
            found,
            "serve",
            settings.model,
            *(part for flag in flags.items() for part in flag),
            *eager,
            *settings.extra_flags,
        ]

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the environment of the process."""
        settings = self.settings
        variables = {name: value for name, value in inherited.items() if not name.startswith(_NOT_INHERITED)}
        # vLLM would otherwise send usage statistics over the network.
        variables["VLLM_NO_USAGE_STATS"] = "1"
        # A local model needs nothing from the hub, and its start must not depend on one.
        if Path(settings.model).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        if settings.cpu_kv_cache_gib:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(settings.cpu_kv_cache_gib)
            if settings.enforce_eager:  # vLLM compiles its logprob code even then, and exits if there is no compiler
                variables.setdefault("TORCHDYNAMO_DISABLE", "1")
        return variables


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
        # Kept between rounds of ``_watch``: only a start that succeeds resets it.
        self._first_backoff_seconds = self._backoff_seconds = first_backoff_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
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
        backoff = self._backoff_seconds
        # 1, 2, 4, ..., 60 s while starts fail: after a failed ``_launch`` the next round finds no process, and comes
        # here again at once.
        self._backoff_seconds = min(MAX_BACKOFF_SECONDS, 2 * backoff)
        self.up = False
        # Reported before the old process is ended, which may take ``KILL_MARGIN_SECONDS``.
        self._listener.on_lost(reason)
        logger.error("model server lost", extra={"data": {"reason": reason, "restart_in_seconds": backoff}})
        # A server that does not answer may still hold GPU memory, with which the next one could not start.
        await self._terminate(KILL_MARGIN_SECONDS)
        await asyncio.sleep(backoff)
        try:
            await self._launch()
        except (ServiceError, ConfigurationError, OSError) as error:
            logger.error("model server could not be restarted", extra={"data": {"reason": str(error)}})
            return
        self._backoff_seconds = self._first_backoff_seconds
        self._listener.on_ready()

    async def _wait_until_lost(self) -> str:
        process = self._process
        if process is None:
            return "the model server is not running"
        # Only the wait is a task, and is cancelled at the end; the process itself goes on.
        ended = asyncio.create_task(process.wait())
        failed_checks = 0
        try:
            while failed_checks < FAILED_CHECKS_BEFORE_RESTART:
                done, _ = await asyncio.wait({ended}, timeout=WATCH_SECONDS)
                if done:
                    return f"the model server ended with code {process.returncode}"
                failed_checks = 0 if await self._is_healthy() else failed_checks + 1
            return "the model server does not answer"
        finally:
            ended.cancel()

    async def _terminate(self, seconds: float) -> None:
        """Send SIGTERM, and SIGKILL to the process group after ``seconds``."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), seconds)
        with contextlib.suppress(ProcessLookupError):  # workers that outlive their server would keep its GPU memory
            os.killpg(process.pid, signal.SIGKILL)
        # Until it has ended, its port and its GPU memory are taken.
        await process.wait()


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


def require_chat_template(model: str, chat_template: Path | None) -> None:
    """Refuse a model folder without a chat template; a model on a hub shows this only at its first generation.

    Raises:
        ConfigurationError: neither folder nor settings have a template, or the named file does not exist.
    """
    if chat_template is not None:
        if not chat_template.is_file():
            raise ConfigurationError(f"engine.vllm.chat_template: there is no file {chat_template}")
        return
    folder = Path(model)
    # Transformers keeps a template in tokenizer_config.json, chat_template.jinja or, for processors,
    # chat_template.json.
    if not folder.is_dir() or (folder / "chat_template.json").is_file():
        return
    file = folder / "tokenizer_config.json"
    try:
        config = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from error
    if find_chat_template(folder, config) is None:
        raise ConfigurationError(
            f"engine.vllm.model: {folder} has no chat template; choose an instruction-tuned model or set "
            "engine.vllm.chat_template"
        )


def find_free_port() -> int:
    """Return a port of the loopback interface that is free now; vLLM fails to start if it is taken before it binds."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
