"""LoRA adapters on vLLM servers without a model: each version beside the one before, proofs, and refusals."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.base import EngineContext, push_weights
from services.trainer.engines.vllm import replica as replica_module
from services.trainer.engines.vllm.adapters import AdapterTransfer
from services.trainer.engines.vllm.build import build_vllm_engine
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.learner.reports import PublishedWeights
from tests.fakes.vllm_rollout_server import VllmRolloutServer
from tests.unit.trainer.engines.conftest import until, weights_of

ADAPTERS = {"backend": "lora_adapter"}


def adapter_of(weight: float, version: int) -> PublishedWeights:
    """An adapter that consists of one number."""
    return replace(weights_of(weight, version), adapter_config={"r": 8})


async def test_an_adapter_is_loaded_beside_that_of_running_turns_which_is_unloaded_after_the_last(
    started, tmp_path: Path
) -> None:
    async with started(1, weight_transfer=ADAPTERS) as setup:
        server = setup.servers[0]
        await push_weights(setup.engine, adapter_of(2.0, 1))
        server.hanging = True
        old = asyncio.create_task(setup.turn("a"))
        await until(lambda: server.running == 1)
        await push_weights(setup.engine, adapter_of(3.0, 2))  # it does not wait for the turn
        server.hanging = False
        new = await setup.turn("b")
        assert set(new.versions) == {2} and new.logprobs[0] == pytest.approx(-3.0 - new.ids[0] / 1000)
        names = [f"v{version}:{weights_of(version + 1.0, version).fingerprint}" for version in (1, 2)]
        assert list(server.adapters) == names
        folders = [Path(folder) for folder, _ in server.adapters.values()]
        assert [folder.name[:17] for folder in folders] == ["adapter-000000001", "adapter-000000002"]
        assert all(folder.is_dir() for folder in folders)
        server.release.set()
        found = await old
        assert set(found.versions) == {1} and found.logprobs[0] == pytest.approx(-2.0 - found.ids[0] / 1000)
        await until(lambda: list(server.adapters) == names[1:])
        # Nothing was paused or replaced, and what was sent is the adapter alone.
        assert server.calls == ["load_lora_adapter"] * 2 and server.weight == 1.0
        assert [body["cache_salt"] for body in server.bodies if "prompt_logprobs" not in body] == names
        assert all(0 < report.bytes < 1000 for report in setup.pushes)
        await push_weights(setup.engine, adapter_of(2.5, 3))
        assert [path.name[:17] for path in tmp_path.glob("adapter-*")] == ["adapter-000000003"]
    assert not list(tmp_path.glob("adapter-*")) and not server.adapters


async def test_a_third_adapter_waits_for_the_turns_of_the_first(started) -> None:
    async with started(1, weight_transfer=ADAPTERS) as setup:
        server = setup.servers[0]
        await push_weights(setup.engine, adapter_of(2.0, 1))
        server.hanging = True
        old = asyncio.create_task(setup.turn("a"))
        await until(lambda: server.running == 1)
        await push_weights(setup.engine, adapter_of(3.0, 2))
        pushing = asyncio.create_task(push_weights(setup.engine, adapter_of(4.0, 3)))
        await until(lambda: setup.engine.replicas[0].state == "updating")
        await asyncio.sleep(0.1)
        assert len(server.adapters) == 2 and not pushing.done()
        server.release.set()
        await pushing
        assert set((await old).versions) == {1}
        assert [weight for _, weight in server.adapters.values()] == [4.0]


async def test_a_server_that_serves_the_model_without_its_adapter_gets_no_turns(started) -> None:
    async with started(2, weight_transfer=ADAPTERS) as setup:
        deaf, good = setup.servers
        deaf.deaf = True
        await push_weights(setup.engine, adapter_of(2.0, 1))
        for number in range(4):
            await setup.turn(f"r{number}")
        assert (len(deaf.turns), len(good.turns)) == (0, 4)
        assert "differ by 1 nats" in setup.engine.replicas[0].reason
        deaf.deaf = False  # the next attempt loads the same adapter again
        await until(lambda: all(replica.state == "serving" for replica in setup.engine.replicas))


async def test_a_server_that_was_restarted_between_two_turns_gets_the_adapter_again(started) -> None:
    async with started(1, weight_transfer=ADAPTERS) as setup:
        server = setup.servers[0]
        await push_weights(setup.engine, adapter_of(2.0, 1))
        server.adapters.clear()
        await until(lambda: bool(server.adapters))
        assert set((await setup.turn("a")).versions) == {1}
        server.failing_updates = 1
        await push_weights(setup.engine, adapter_of(3.0, 2))
        assert setup.failed_pushes == 1
        assert set((await setup.turn("b")).versions) == {2}
        assert await setup.engine.score([1, 2, 3], 2) == pytest.approx([-3.003])


async def test_a_turn_of_a_server_that_has_lost_its_adapter_is_sampled_again(
    started, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(1, weight_transfer=ADAPTERS) as setup:
        monkeypatch.setattr(replica_module, "WATCH_SECONDS", 3600)
        await push_weights(setup.engine, adapter_of(2.0, 1))
        setup.servers[0].adapters.clear()
        turn = await setup.turn("a")
        assert turn.logprobs[0] == pytest.approx(-2.0 - turn.ids[0] / 1000)
        assert setup.failovers == 1


@pytest.mark.parametrize(("rank", "largest"), [(4, "8"), (16, "16"), (33, "64"), (512, "512")])
def test_a_server_is_started_for_the_rank_of_the_adapter(tmp_path: Path, rank: int, largest: str) -> None:
    arguments = AdapterTransfer(tmp_path, rank).arguments
    assert arguments[arguments.index("--max-lora-rank") + 1] == largest
    with pytest.raises(ConfigurationError, match=r"learner\.adapter\.rank 513 is over 512"):
        AdapterTransfer(tmp_path, 513)


async def test_a_server_that_cannot_load_adapters_is_refused(model: Path, tmp_path: Path) -> None:
    server = VllmRolloutServer(ModelTokenizer.from_folder(model))
    server.loads_adapters = False
    async with server:
        settings = VllmEngineSettings.model_validate({"urls": [server.url], "weight_transfer": ADAPTERS})
        engine = build_vllm_engine(settings, EngineContext(model, tmp_path, 512, adapter_rank=8))
        with pytest.raises(ConfigurationError, match=r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"):
            await engine.start()
        await engine.close()
