"""vLLM servers in Ray actors: started where their places are, and again when a process or its actor is lost."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from searchrl.errors import ConfigurationError
from searchrl.model_server.vllm_server import Listener
from searchrl.platform.retry import RetryPolicy
from services.trainer.cluster.placement import Place, RunPlacement
from services.trainer.engines.base import EngineContext
from services.trainer.engines.vllm.build import build_vllm_engine
from services.trainer.engines.vllm.settings import VllmEngineSettings
from tests.fakes.tiny_llm import make_tiny_llm

ray = pytest.importorskip("ray")

from services.trainer.engines.vllm.ray_server import RayServer  # noqa: E402 - after the check that Ray is installed

STAND_IN = Path(__file__).parents[3] / "fakes" / "vllm_stand_in.py"


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
    """A folder with the models "good" and "crashes", and an executable that stands in for vLLM."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("good", "crashes"):
        make_tiny_llm(folder / name)
    executable = folder / "vllm"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    return folder


def servers_of(folder: Path, model: str, **settings: Any) -> list[RayServer]:
    """The servers of an engine that has been built and not started."""
    server = {"executable": folder / "vllm", "shutdown_seconds": 1, **settings.pop("server", {})}
    values = VllmEngineSettings.model_validate({"placement": "ray", "server": server, **settings})
    engine = build_vllm_engine(values, EngineContext(folder / model, folder / "engine", 512))
    servers = [replica.server for replica in engine.replicas]
    assert all(isinstance(server, RayServer) for server in servers)
    return servers  # type: ignore[return-value]


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
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


async def facts_of(address: str) -> dict[str, Any]:
    """What a stand-in says about its process."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{address}/")).json()


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("session")
async def test_a_lost_process_is_replaced_by_its_actor_and_a_lost_actor_by_another(folder: Path) -> None:
    cpu = {"server": {"cpu_kv_cache_gib": 1}, "gpus_per_replica": 0}
    (built,) = servers_of(folder, "good", **cpu)
    events, client = Events(), built._client
    placement = RunPlacement(servers=[Place("vLLM server", 1)])
    await asyncio.to_thread(placement.reserve)
    server = RayServer(placement, 0, built.command, client, events.listener())
    server._restarts = RetryPolicy(first_seconds=0.01)
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

    os.kill(second["parent"], signal.SIGKILL)
    assert (await events.next()).startswith("its Ray actor ended: ")
    assert await events.next() == "ready"
    third = await facts_of(client.base_url)
    assert third["parent"] != second["parent"]
    assert not is_running(second["pid"])  # the kernel ended it with its actor

    server.restart("it serves something else")
    assert await events.next() == "it serves something else"
    assert await events.next() == "ready"
    fourth = await facts_of(client.base_url)
    await server.stop()
    assert not is_running(fourth["pid"]) and not is_running(third["pid"])
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
