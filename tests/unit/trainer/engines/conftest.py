"""Engines over vLLM servers without a model, for the tests of pushes and turns."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import torch

from searchrl.agent.types import Generation, Sampling
from searchrl.platform.health import Health
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.base import EngineContext, PushReport
from services.trainer.engines.vllm import client as client_module
from services.trainer.engines.vllm import replica as replica_module
from services.trainer.engines.vllm.build import build_vllm_engine
from services.trainer.engines.vllm.engine import VllmEngine
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.learner.model_folder import fingerprint_tensors
from services.trainer.learner.reports import LogprobProbe, PublishedWeights
from tests.fakes.tiny_llm import make_tiny_llm
from tests.fakes.vllm_rollout_server import VllmRolloutServer

PROBE = (3, 5, 7, 9)


def weights_of(weight: float, version: int) -> PublishedWeights:
    """Weights that consist of one number."""
    tensors = {"weight": torch.tensor([weight])}
    probe = LogprobProbe(PROBE, tuple(-weight - token / 1000 for token in PROBE[1:]))
    return PublishedWeights(version, fingerprint_tensors(tensors), tensors, probe)


class Setup:
    """An engine over servers, and what it reported."""

    def __init__(self, engine: VllmEngine, servers: list[VllmRolloutServer], health: Health) -> None:
        self.health = health
        self.engine = engine
        self.servers = servers
        self.pushes: list[PushReport] = []
        self.failed_pushes = 0
        self.failovers = 0

    async def turn(self, name: str, seed: int = 1, length: int = 4) -> Generation:
        return await self.engine.generate([1, 2, 3], Sampling(max_tokens=length, seed=seed), name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llm(tmp_path_factory.mktemp("model"))


@pytest.fixture
def started(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Start an engine over ``count`` servers: ``async with started(2, min_replicas=1) as setup``."""
    monkeypatch.setattr(replica_module, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(replica_module, "FIRST_PAUSE_SECONDS", 0.01)
    tokenizer = ModelTokenizer.from_folder(model)

    @asynccontextmanager
    async def start(count: int, **settings: object) -> AsyncIterator[Setup]:
        async with AsyncExitStack() as stack:
            health = Health()
            health.set_ready()
            servers = [await stack.enter_async_context(VllmRolloutServer(tokenizer)) for _ in range(count)]
            urls = [server.url for server in servers]
            given = VllmEngineSettings.model_validate({"urls": urls, "probe_tolerance": 1e-3, **settings})

            def count_failover() -> None:
                setup.failovers += 1

            def count_failed_push() -> None:
                setup.failed_pushes += 1

            context = EngineContext(
                model,
                tmp_path,
                512,
                adapter_rank=8,
                health=health,
                on_push=lambda report: setup.pushes.append(report),
                on_failed_push=count_failed_push,
                on_failover=count_failover,
            )
            engine = build_vllm_engine(given, context)
            setup = Setup(engine, servers, health)
            stack.push_async_callback(engine.close)
            await engine.start()
            for server in servers:  # forget the checks of the start
                server.turns.clear()
                server.bodies.clear()
                server.calls.clear()
            yield setup

    return start


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
