"""vLLM as engine, on servers without a model: routing, pushes, proofs, replacement of servers, and refusals."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer import wiring
from services.trainer.cluster.placement import RunPlacement
from services.trainer.engines.base import EngineContext, EngineOutOfDate, push_weights
from services.trainer.engines.vllm import replica as replica_module
from services.trainer.engines.vllm.build import build_vllm_engine
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.engines.vllm.weight_transfer import FileConnection, StagedWeights
from services.trainer.metrics import TrainerMetrics
from services.trainer.runs.run_folder import RunFolder
from tests.fakes.small_run import run_config
from tests.fakes.vllm_rollout_server import VllmRolloutServer
from tests.unit.trainer.engines.conftest import until, weights_of


async def test_a_push_reaches_every_server_and_tokens_name_its_version(started, tmp_path: Path) -> None:
    async with started(2) as setup:
        for version, weight in enumerate((2.0, 3.0), 4):
            await push_weights(setup.engine, weights_of(weight, version))
            turns = await asyncio.gather(*(setup.turn(f"r{n}") for n in range(4)))
            assert {turn.versions for turn in turns} == {(version,) * 4}
            assert turns[0].logprobs[0] == pytest.approx(-weight - turns[0].ids[0] / 1000)
        names = {server.name for server in setup.servers}
        assert names == {f"v5:{weights_of(3.0, 5).fingerprint}"}
        assert len(setup.pushes) == 2 and all(report.bytes > 0 for report in setup.pushes)
        assert not setup.failed_pushes
        # the file of the version before is gone, and the prefix cache is salted with the weights
        assert [path.name for path in tmp_path.glob("weights-*")] == ["weights-000000005.safetensors"]
        assert setup.servers[0].bodies[-1]["cache_salt"] == setup.servers[0].name
        order = ["pause", "init_weight_transfer_engine", "start_weight_update", "update_weights"]
        assert setup.servers[0].calls[:6] == [*order, "finish_weight_update", "resume"]
    assert not list(tmp_path.glob("weights-*"))


async def test_weights_are_broadcast_to_servers_without_a_shared_disk(started, tmp_path: Path) -> None:
    async with started(2, weight_transfer={"backend": "gloo"}, server={"dtype": "bfloat16"}) as setup:
        for version, weight in enumerate((2.0, 3.0), 1):
            await push_weights(setup.engine, weights_of(weight, version))
        assert [server.weight for server in setup.servers] == [3.0, 3.0]
        assert setup.pushes[-1].bytes == 2  # one number in bfloat16
        setup.servers[0].failing_updates = 1  # it answers at once, and receives nothing
        await push_weights(setup.engine, weights_of(4.0, 3))
        await until(lambda: setup.servers[0].weight == 4.0)
    assert not list(tmp_path.iterdir())


async def test_all_turns_of_a_rollout_go_to_one_server_and_rollouts_are_spread(started) -> None:
    async with started(2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        for _ in range(3):
            for name in ("a", "b", "c", "d"):
                await setup.turn(name)
        seen = [server.turns for server in setup.servers]
        assert sorted(map(len, seen)) == [6, 6]
        assert not set(seen[0]) & set(seen[1])
        setup.engine.close_session("a")
        assert sum(replica.sessions for replica in setup.engine.replicas) == 3


async def test_a_turn_of_a_lost_server_is_sampled_once_more_elsewhere_and_the_server_comes_back(started) -> None:
    async with started(2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        lost, other = setup.servers
        lost.hanging = True
        turns = [asyncio.create_task(setup.turn(f"r{n}", seed=n)) for n in range(4)]
        await until(lambda: lost.running == 2)
        await lost.stop()
        results = await asyncio.gather(*turns)
        assert [turn.ids[0] for turn in results] == [3, 4, 5, 6]
        assert len(other.turns) == 4
        assert setup.failovers == 2
        lost.hanging = False
        await lost.start_again()
        await until(lambda: lost.name == other.name)
        await until(lambda: all(replica.state == "serving" for replica in setup.engine.replicas))
        assert lost.weight == 2.0


async def test_a_turn_of_a_server_that_was_restarted_unnoticed_is_sampled_again(
    started, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(1) as setup:
        monkeypatch.setattr(replica_module, "WATCH_SECONDS", 3600)
        await push_weights(setup.engine, weights_of(2.0, 1))
        await setup.turn("a")
        setup.servers[0].name, setup.servers[0].weight = "default", 1.0
        turn = await setup.turn("a")
        assert turn.logprobs[0] == pytest.approx(-2.0 - turn.ids[0] / 1000)
        assert setup.failovers == 1


async def test_a_server_is_called_while_the_run_has_no_weights_for_it(started) -> None:
    """The run may wait for a service for hours; a server in a pod of the run ends if nobody calls it."""
    async with started(1) as setup:
        before = setup.servers[0].inquiries
        await until(lambda: setup.servers[0].inquiries > before + 2)
        assert setup.engine.replicas[0].state == "starting"


async def test_fewer_servers_than_the_minimum_pause_the_rollouts(started) -> None:
    async with started(2, min_replicas=2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        await setup.servers[0].stop()
        first, second = (asyncio.create_task(setup.turn(name)) for name in ("a", "b"))
        await until(lambda: any(replica.state == "out" for replica in setup.engine.replicas))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(setup.turn("c"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert not setup.health.ready and setup.servers[0].url in setup.health.reason
        await setup.servers[0].start_again()
        assert len((await waiting).ids) == 4
        assert setup.health.ready
        await asyncio.gather(first, second)


async def test_a_server_that_fails_a_push_gets_no_turns_until_it_serves_the_newest_weights(started) -> None:
    async with started(2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        bad, good = setup.servers
        bad.failing_updates = 2
        await push_weights(setup.engine, weights_of(3.0, 2))
        assert setup.failed_pushes >= 1
        assert {turn.versions for turn in [await setup.turn(f"r{n}") for n in range(4)]} == {(2,) * 4}
        await until(lambda: bad.name == good.name)
        assert bad.weight == 3.0


async def test_two_servers_that_fail_every_push_end_the_run_with_both_reasons(started) -> None:
    async with started(2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        for server in setup.servers:
            server.failing_updates = 100
        with pytest.raises(EngineOutOfDate, match="only 0 of 2 servers serve version 2") as caught:
            await push_weights(setup.engine, weights_of(3.0, 2))
        assert all(server.url in str(caught.value) for server in setup.servers)
        assert "the update failed" in str(caught.value)
        assert setup.failed_pushes >= 2 * replica_module.GIVE_UP_AFTER


async def test_a_server_that_accepts_weights_and_serves_others_gets_no_turns(started) -> None:
    async with started(2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        deaf, good = setup.servers
        deaf.deaf = True
        await push_weights(setup.engine, weights_of(3.0, 2))
        deaf.turns.clear()
        for number in range(4):
            await setup.turn(f"r{number}")
        assert not deaf.turns
        assert len(good.turns) == 4
        assert "differ by 1 nats" in setup.engine.replicas[0].reason


async def test_a_change_too_small_for_the_tolerance_must_still_arrive(started) -> None:
    async with started(1) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        setup.servers[0].deaf = True
        with pytest.raises(EngineOutOfDate, match="still those of version 1"):
            await push_weights(setup.engine, weights_of(2.0005, 2))
        setup.servers[0].deaf = False
        await push_weights(setup.engine, weights_of(2.0, 3))  # unchanged weights prove themselves, too


async def test_weights_that_another_run_replaced_end_the_run(started) -> None:
    async with started(1) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        setup.servers[0].name = "v7:other"
        await until(lambda: setup.engine.replicas[0].state == "out")
        with pytest.raises(EngineOutOfDate, match="another run may be using it"):
            await push_weights(setup.engine, weights_of(3.0, 2))
        assert setup.servers[0].name == "v7:other"


async def test_turns_go_on_under_new_weights_from_the_tokens_that_they_have(started) -> None:
    async with started(1, running_turns="continue") as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        server = setup.servers[0]
        server.hanging = True
        turn = asyncio.create_task(setup.turn("a", length=6))
        await until(lambda: server.running == 1)
        pushing = asyncio.create_task(push_weights(setup.engine, weights_of(3.0, 2)))
        await until(lambda: server.aborted.is_set() and server.running == 0)
        server.hanging = False
        await pushing
        found = await turn
        assert found.versions == (1, 1, 2, 2, 2, 2)
        assert found.logprobs == pytest.approx(
            [-weight - token / 1000 for weight, token in zip((2, 2, 3, 3, 3, 3), found.ids, strict=True)]
        )
        first, second = (body for body in server.bodies if "prompt_logprobs" not in body)
        assert second["prompt"] == [*first["prompt"], *found.ids[:2]]
        assert second["max_tokens"] == 4
        assert second["seed"] != first["seed"]


async def test_a_cancelled_turn_ends_on_the_server(started) -> None:
    async with started(1) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        setup.servers[0].hanging = True
        turn = asyncio.create_task(setup.turn("a"))
        await until(lambda: setup.servers[0].running == 1)
        turn.cancel()
        await until(lambda: setup.servers[0].running == 0)
        assert (await setup.engine.health()).running == 0


async def test_no_more_turns_than_allowed_are_on_a_server_at_once(started) -> None:
    async with started(1, max_in_flight=2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        server = setup.servers[0]
        server.hanging = True
        turns = [asyncio.create_task(setup.turn(f"r{n}")) for n in range(5)]
        await until(lambda: server.running == 2)
        await asyncio.sleep(0.05)
        assert server.running == 2
        server.release.set()
        assert len(await asyncio.gather(*turns)) == 5


async def test_a_turn_that_takes_too_long_is_given_up(started) -> None:
    async with started(1, timeout_seconds=0.1, recovery_seconds=5) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        setup.servers[0].hanging = True
        with pytest.raises(Exception, match="did not answer in time"):
            await setup.turn("a")
        assert setup.failovers == 4


async def test_a_server_that_ends_turns_without_a_token_is_given_up(started) -> None:
    async with started(1) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        setup.servers[0].refuses_tokens = True
        with pytest.raises(Unavailable, match="without a token"):
            await setup.turn("a")


async def test_a_closed_engine_refuses_turns(started) -> None:
    async with started(1) as setup:
        await push_weights(setup.engine, weights_of(2.0, 1))
        await setup.engine.close()
        with pytest.raises(Unavailable, match="closed"):
            await setup.turn("a")


async def test_failed_pushes_are_in_the_metrics_of_a_run_that_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "FIRST_PAUSE_SECONDS", 0.01)
    config = run_config(tmp_path)
    profile, registry = wiring.read_profile(config), CollectorRegistry()
    tokenizer = ModelTokenizer.from_folder(config.model)
    async with VllmRolloutServer(tokenizer, profile.limits.max_context_tokens) as server:
        config = config.model_copy(update={"engine": VllmEngineSettings(urls=[server.url])})
        folder, metrics = RunFolder(config.output), TrainerMetrics(registry)
        engine = wiring.build_engine(config, profile, folder, RunPlacement(), metrics, None)
        await engine.start()
        server.failing_updates = 100
        with pytest.raises(EngineOutOfDate):
            await push_weights(engine, weights_of(2.0, 1))
        await engine.close()
    count = registry.get_sample_value("searchrl_trainer_weight_push_failures_total")
    assert count and count >= replica_module.GIVE_UP_AFTER


async def test_a_closed_engine_lets_an_update_end_that_would_leave_a_server_with_half_of_it(
    started, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending, release = asyncio.Event(), asyncio.Event()
    send = FileConnection.send

    async def send_late(self: FileConnection, staged: StagedWeights) -> None:
        sending.set()
        await release.wait()
        await send(self, staged)

    monkeypatch.setattr(FileConnection, "send", send_late)
    async with started(1) as setup:
        pushing = asyncio.create_task(push_weights(setup.engine, weights_of(2.0, 1)))
        await sending.wait()
        pushing.cancel()
        closing = asyncio.create_task(setup.engine.close())
        await asyncio.wait({closing}, timeout=0.1)
        assert not closing.done()
        release.set()
        await closing
        server = setup.servers[0]
        assert (server.weight, server.name) == (2.0, f"v1:{weights_of(2.0, 1).fingerprint}")


async def test_a_closed_engine_does_not_wait_long_for_an_update_that_hangs(
    started, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = asyncio.Event()

    async def hang(_self: FileConnection, _staged: StagedWeights) -> None:
        sending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(FileConnection, "send", hang)
    monkeypatch.setattr(replica_module, "LAST_UPDATE_SECONDS", 0.01)
    async with started(1) as setup:
        pushing = asyncio.create_task(push_weights(setup.engine, weights_of(2.0, 1)))
        await sending.wait()
        pushing.cancel()
        async with asyncio.timeout(20):
            await setup.engine.close()


class Shifted:
    """A tokenizer whose ids are other text."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return [token + 1 for token in self._tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_model_len": 511}, "raise max_model_len"),
        ({"development_mode": False}, "VLLM_SERVER_DEV_MODE=1"),
        ({"raw_logprobs": True}, "--logprobs-mode processed_logprobs"),
        ({"transfers": False}, "cannot receive weights by trainer_shared_fs"),
        ({"tokenizer": "shifted"}, "another tokenizer"),
    ],
)
async def test_a_server_that_was_not_started_for_the_run_is_refused(
    model: Path, tmp_path: Path, wrong: dict[str, object], sentence: str
) -> None:
    server = VllmRolloutServer(ModelTokenizer.from_folder(model))
    for name, value in wrong.items():
        setattr(server, name, Shifted(server.tokenizer) if value == "shifted" else value)  # type: ignore[arg-type]
    async with server:
        engine = build_vllm_engine(VllmEngineSettings(urls=[server.url]), EngineContext(model, tmp_path, 512))
        with pytest.raises(ConfigurationError, match=sentence):
            await engine.start()
        await engine.close()
