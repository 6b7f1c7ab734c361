"""The supervised vLLM server: started, probed, restarted, and never left running after the service."""

import asyncio
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from searchrl.errors import ConfigurationError, InvalidRequest, Unavailable
from searchrl.model_server import vllm_server
from searchrl.model_server.settings import VllmSettings
from searchrl.model_server.vllm_command import VllmCommand, find_free_port
from searchrl.model_server.vllm_server import Listener, VllmServer, last_error_line

STAND_IN = Path(__file__).parents[2] / "fakes" / "vllm_stand_in.py"


class Events:
    """The events that the supervisor reported."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.is_lost = asyncio.Event()
        self.back = asyncio.Event()

    def listener(self) -> Listener:
        return Listener(self._record_loss, self.back.set)

    def _record_loss(self, reason: str) -> None:
        self.lost.append(reason)
        self.is_lost.set()


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], VllmCommand]:
    executable = tmp_path / "vllm"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)

    def command_of(model: str) -> VllmCommand:
        settings = VllmSettings(
            executable=executable,
            model=model,
            served_name="tiny",
            cpu_kv_cache_gib=1,
            log_file=tmp_path / "logs" / "vllm.log",
            start_seconds=30.0,
            shutdown_seconds=1,
        )
        return VllmCommand(settings, find_free_port())

    return command_of


def server_of(command: VllmCommand, events: Events) -> VllmServer:
    """A supervised server that runs the stand-in for vLLM, with short waits between restarts."""

    async def probe() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            response = await client.post(f"{command.base_url}/v1/chat/completions", json={})
        if response.status_code == 400:
            raise InvalidRequest(response.json()["error"]["message"])

    return VllmServer(
        command,
        probe=probe,
        listener=events.listener(),
        first_backoff_seconds=0.01,
    )


def is_running(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


async def test_it_starts_generates_and_ends_with_the_service(
    command: Callable[[str], VllmCommand], tmp_path: Path
) -> None:
    server = server_of(command("good"), Events())
    await server.start()
    pid = server.pid
    assert server.up
    assert is_running(pid)
    await server.stop()
    assert not server.up
    assert not is_running(pid)


async def test_a_server_that_dies_is_restarted_and_both_events_are_reported(
    command: Callable[[str], VllmCommand], tmp_path: Path
) -> None:
    events, started = Events(), command("good")
    server = server_of(started, events)
    await server.start()
    first = server.pid
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx.HTTPError):
                await client.post(f"{started.base_url}/die")
        await asyncio.wait_for(events.back.wait(), 20)
        assert events.lost == ["the model server ended with code 7"]
        assert server.up
        assert server.pid != first
    finally:
        await server.stop()


async def test_a_server_that_answers_is_replaced_on_request(
    command: Callable[[str], VllmCommand], tmp_path: Path
) -> None:
    events = Events()
    server = server_of(command("good"), events)
    await server.start()
    first = server.pid
    try:
        server.restart("its weights are incomplete")
        await asyncio.wait_for(events.back.wait(), 20)
        assert events.lost == ["its weights are incomplete"]
        assert server.pid != first
        assert not is_running(first)
    finally:
        await server.stop()


@pytest.mark.parametrize("broken_rounds", [0, 1])
async def test_a_server_that_stops_answering_is_replaced(
    command: Callable[[str], VllmCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_rounds: int
) -> None:
    monkeypatch.setattr(vllm_server, "WATCH_SECONDS", 0.01)
    events = Events()
    server = server_of(command("good"), events)
    await server.start()
    answers: list[bool | None] = [False] * vllm_server.FAILED_CHECKS_BEFORE_RESTART + [None] * broken_rounds
    healthy = server._is_healthy

    async def scripted() -> bool:
        answer = answers.pop() if answers else await healthy()
        if answer is None:
            raise RuntimeError("a bug in the watch")
        return answer

    monkeypatch.setattr(server, "_is_healthy", scripted)
    try:
        await asyncio.wait_for(events.back.wait(), 20)
        assert events.lost == ["the model server does not answer"]
    finally:
        await server.stop()


async def test_a_server_that_cannot_start_is_a_configuration_error_with_its_message(
    command: Callable[[str], VllmCommand], tmp_path: Path
) -> None:
    server = server_of(command("crashes"), Events())
    with pytest.raises(ConfigurationError, match=r"code 3 .*ValueError: the model's weights are broken"):
        await server.start()
    await server.stop()


async def test_a_model_that_cannot_chat_is_a_configuration_error(
    command: Callable[[str], VllmCommand], tmp_path: Path
) -> None:
    server = server_of(command("no-template"), Events())
    with pytest.raises(ConfigurationError, match="chat template"):
        await server.start()
    assert server.pid is None
    await server.stop()


async def test_a_server_that_never_becomes_healthy_fails_the_start(
    command: Callable[[str], VllmCommand], tmp_path: Path
) -> None:
    silent = command("silent")
    quick = VllmCommand(silent.settings.model_copy(update={"start_seconds": 0.5}), silent.port)
    server = server_of(quick, Events())
    with pytest.raises(ConfigurationError, match=r"not ready within 0\.5 s"):
        await server.start()
    await server.stop()


async def test_a_server_that_ignores_sigterm_is_killed(
    command: Callable[[str], VllmCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "KILL_MARGIN_SECONDS", 0.1)
    server = server_of(command("stubborn"), Events())
    await server.start()
    pid = server.pid
    await server.stop()
    assert not is_running(pid)


async def test_a_lost_server_that_ignores_sigterm_is_killed_when_the_service_stops_meanwhile(
    command: Callable[[str], VllmCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop cancels the watch, which is waiting for the end of the lost server."""
    monkeypatch.setattr(vllm_server, "WATCH_SECONDS", 0.01)
    events = Events()
    server = server_of(command("stubborn"), events)
    await server.start()
    pid = server.pid

    async def is_healthy() -> bool:
        return False

    monkeypatch.setattr(server, "_is_healthy", is_healthy)
    async with asyncio.timeout(20):
        await events.is_lost.wait()
        await server.stop()
    assert not is_running(pid)
    assert server.pid is None


async def test_its_environment_has_no_secrets_and_no_development_mode(
    command: Callable[[str], VllmCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENERATOR_ENGINE__KEY", "secret")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    started = command("good")
    server = server_of(started, Events())
    await server.start()
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            seen = (await client.get(f"{started.base_url}/health")).json()
    finally:
        await server.stop()
    environment = seen["environment"]
    assert not {"GENERATOR_ENGINE__KEY", "VLLM_SERVER_DEV_MODE", "PYTHONPATH"} & set(environment)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    assert seen["arguments"][:2] == ["serve", "good"]


async def test_it_ends_when_the_service_is_killed(command: Callable[[str], VllmCommand], tmp_path: Path) -> None:
    started = command("good")
    script = (
        "import asyncio, os, signal\n"
        "from searchrl.model_server.settings import VllmSettings\n"
        "from searchrl.model_server.vllm_command import VllmCommand\n"
        "from searchrl.model_server.vllm_server import Listener, VllmServer\n"
        "async def main():\n"
        f"    settings = VllmSettings(executable={str(started.settings.executable)!r}, model='good',"
        f" served_name='tiny', cpu_kv_cache_gib=1, log_file={str(tmp_path / 'vllm.log')!r}, start_seconds=30)\n"
        f"    command = VllmCommand(settings, {started.port})\n"
        "    listener = Listener(lambda reason: None, lambda: None)\n"
        "    server = VllmServer(command, probe=probe, listener=listener)\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "async def probe(): pass\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=STAND_IN.parents[2], stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    await parent.wait()
    async with asyncio.timeout(10):
        while is_running(pid):
            await asyncio.sleep(0.02)


def test_the_reported_line_of_a_log_is_the_last_error(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("INFO a\nRuntimeError: no memory\nINFO shutting down\n")
    assert last_error_line(log) == "RuntimeError: no memory"
    assert last_error_line(tmp_path / "missing") == "nothing"


async def test_an_unavailable_probe_fails_the_start(command: Callable[[str], VllmCommand], tmp_path: Path) -> None:
    async def probe() -> None:
        raise Unavailable("no generation")

    events = Events()
    server = VllmServer(command("good"), probe=probe, listener=events.listener())
    with pytest.raises(ConfigurationError, match="no generation"):
        await server.start()
    await server.stop()
