"""vLLM servers in Ray actors: started where their places are, and again when a process or its actor is lost."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from searchrl.agent.types import Sampling
from searchrl.errors import ConfigurationError
from searchrl.model_server.vllm_server import Listener
from searchrl.small_world.files import WARM_START_FOLDER
from services.trainer.cluster.placement import Place, RunPlacement
from services.trainer.engines.base import EngineContext, push_weights
from services.trainer.engines.vllm.build import build_vllm_engine
from services.trainer.engines.vllm.engine import VllmEngine
from services.trainer.engines.vllm.settings import VllmEngineSettings
from tests.unit.trainer.engines.conftest import weights_of

ray = pytest.importorskip("ray")

from services.trainer.engines.vllm.ray_server import RayServer  # noqa: E402 - after the check that Ray is installed

ROOT = Path(__file__).parents[4]
STAND_IN = ROOT / "tests" / "fakes" / "vllm_stand_in.py"


class Events:
    """What a server reported."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[str] = asyncio.Queue()

    def listener(self) -> Listener:
        return Listener(self.reports.put_nowait, lambda: self.reports.put_nowait("ready"))

    async def next(self) -> str:
        async with asyncio.timeout(120):
            return await self.reports.get()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models "good" and "crashes", and executables that stand in for vLLM."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("good", "crashes"):
        shutil.copytree(WARM_START_FOLDER, folder / name)
        config = folder / name / "config.json"  # names no architecture, and to find it takes seconds
        config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["Qwen3ForCausalLM"]}))
    programs = {"vllm": str(STAND_IN), "rollouts": "-m tests.fakes.vllm_rollout_server"}
    for name, program in programs.items():
        executable = folder / name
        executable.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {program} "$@"\n')
        executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    return folder


def engine_of(folder: Path, model: str, **settings: Any) -> VllmEngine:
    """An engine whose servers are in actors; nothing is started yet."""
    server = {"executable": folder / "vllm", "shutdown_seconds": 1, **settings.pop("server", {})}
    values = VllmEngineSettings.model_validate({"placement": "ray", "server": server, **settings})
    return build_vllm_engine(values, EngineContext(folder / model, folder / "engine", 512))


def servers_of(folder: Path, model: str, **settings: Any) -> list[RayServer]:
    """The servers of such an engine."""
    servers: list[RayServer] = []
    for replica in engine_of(folder, model, **settings).replicas:
        assert isinstance(replica.server, RayServer)
        servers.append(replica.server)
    return servers


def test_every_server_has_its_gpus_and_shares_its_model_among_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    found = servers_of(Path(folder.name), "good", replicas=2, gpus_per_replica=4)
    assert [server.command.settings.tensor_parallel_size for server in found] == [4, 4]
    # The working folder of an actor is another one.
    settings = found[1].command.settings
    named = (settings.executable, Path(settings.model), settings.log_file)
    assert named == (folder / "vllm", folder / "good", folder / "engine" / "vllm-1.log")
    placed = VllmEngineSettings.model_validate({"placement": "ray", "replicas": 2, "gpus_per_replica": 4}).places()
    assert placed == [Place("vLLM server", 1, 4)] * 2
    assert VllmEngineSettings().places() == []


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    # More than there are: a test that reserves places and does not release them leaves some for the next.
    ray.init(num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


async def facts_of(address: str) -> dict[str, Any]:
    """What a stand-in says about its process."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{address}/")).json()


def actor_process() -> psutil.Process:
    """The process of the only actor of a server."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends processes that have nothing to do
            if process.name().startswith("ray::ServerActor"):
                found.append(process)
    (actor,) = found
    return actor


async def ended(pid: int) -> None:
    """Return when this process has ended; it may wait for its parent to notice."""
    async with asyncio.timeout(60):
        with contextlib.suppress(psutil.NoSuchProcess):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("session")
async def test_a_lost_process_is_replaced_by_its_actor(folder: Path) -> None:
    cpu = {"server": {"cpu_kv_cache_gib": 1}, "gpus_per_replica": 0}
    (built,) = servers_of(folder, "good", **cpu)
    events, client = Events(), built._client
    placement = RunPlacement(servers=[Place("vLLM server", 1)])
    await asyncio.to_thread(placement.reserve)
    server = RayServer(placement, 0, built.command, client, events.listener())
    await server.start()
    first = await facts_of(client.base_url)
    assert first["arguments"][1] == str(folder / "good")
    assert first["arguments"][first["arguments"].index("--host") + 1] == ray.util.get_node_ip_address()
    assert first["environment"]["VLLM_SERVER_DEV_MODE"] == "1"

    os.kill(first["pid"], signal.SIGKILL)
    assert await events.next() == "the model server ended with code -9"
    assert await events.next() == "ready"
    second = await facts_of(client.base_url)
    assert second["pid"] != first["pid"] and second["parent"] == first["parent"]

    server.restart("it serves something else")
    assert await events.next() == "it serves something else"
    assert await events.next() == "ready"
    third = await facts_of(client.base_url)
    await server.stop()
    await ended(second["pid"])
    await ended(third["pid"])
    await client.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("session")
async def test_a_server_that_ends_at_its_start_is_refused_with_the_last_line_of_its_log(folder: Path) -> None:
    (server,) = servers_of(folder, "crashes", server={"cpu_kv_cache_gib": 1}, gpus_per_replica=0)
    await asyncio.to_thread(server._placement.reserve)
    with pytest.raises(ConfigurationError, match="the model's weights are broken"):
        await server.start()
    await server.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("session")
async def test_a_turn_is_sampled_again_on_the_server_of_another_actor_with_the_newest_weights(folder: Path) -> None:
    """Runs last: an engine that is closed leaves the session."""
    server = {"executable": folder / "rollouts", "cpu_kv_cache_gib": 1}
    engine = engine_of(folder, "good", server=server, gpus_per_replica=0, probe_tolerance=1e-3)
    (replica,) = engine.replicas
    try:
        await engine.start()
        await push_weights(engine, weights_of(2.0, 1))
        first = await engine.generate([1, 2, 3], Sampling(max_tokens=4, seed=1), "a")
        actor = actor_process()
        (process,) = actor.children()
        actor.kill()
        await ended(process.pid)  # the kernel ends it with its actor
        second = await engine.generate([1, 2, 3], Sampling(max_tokens=4, seed=1), "a")
        assert second == first and set(first.versions) == {1}
        assert first.logprobs[0] == pytest.approx(-2.0 - first.ids[0] / 1000)
        assert actor_process().pid != actor.pid
        await push_weights(engine, weights_of(3.0, 2))
        assert set((await engine.generate([1, 2, 3], Sampling(max_tokens=4, seed=1), "a")).versions) == {2}
    finally:
        await engine.close()
    with pytest.raises(httpx.ConnectError):
        await facts_of(replica.client.base_url)
