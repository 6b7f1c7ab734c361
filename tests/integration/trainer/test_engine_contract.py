"""What every rollout engine promises, shown by all of them: torch, scripted, and real vLLM with two servers on CPUs."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
import pytest
import pytest_asyncio
import torch

from searchrl.agent.types import Generation, Sampling
from searchrl.model_server.settings import VllmProcessSettings
from searchrl.model_server.vllm_server import VllmServer
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.base import EngineContext, RolloutEngine, push_weights
from services.trainer.engines.sampling import StopDetector
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.engines.vllm.build import build_vllm_engine
from services.trainer.engines.vllm.engine import VllmEngine
from services.trainer.engines.vllm.settings import VllmEngineSettings, WeightTransferSettings
from services.trainer.engines.vllm.weight_transfer import FileConnection, StagedWeights
from services.trainer.learner.adapters import adapter_layers
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.reports import LogprobProbe, PublishedWeights
from services.trainer.learner.train_batch import probe_row
from services.trainer.runs.serve_engine import count_requests
from tests.fakes.scripted_rollout_engine import ScriptedRolloutEngine
from tests.fakes.tiny_llm import make_tiny_llm
from tests.integration.real_vllm import NEEDS_VLLM, VLLM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.asyncio(loop_scope="module")]
CONTEXT = 512
PROMPT = [(number * 31 + 40) % 256 for number in range(24)]
TOLERANCE = 1e-4  # nats per token, in float32
WITHOUT_MODEL = ("scripted",)
WITH_ADAPTERS = "vllm with adapters"
BACKENDS: Mapping[str, Literal["shared_fs", "gloo", "ipc", "lora_adapter"]] = {
    "vllm": "shared_fs",
    "vllm with gloo": "gloo",
    "vllm with ipc": "ipc",
    WITH_ADAPTERS: "lora_adapter",
}
RANK = 4  # below the smallest that vLLM is started for


@dataclass(slots=True)
class Engines:
    """An engine, the learners whose weights it may serve, and what it reported."""

    kind: str
    engine: RolloutEngine
    tokenizer: ModelTokenizer
    learners: Sequence[Learner]
    failed_pushes: list[None]
    failovers: list[None]
    version: int = 0

    async def push(self, learner: int) -> Learner:
        """Serve the weights of this learner under the next version."""
        self.version += 1
        await push_weights(self.engine, publish(self.learners[learner], self.version))
        return self.learners[learner]

    async def sample(self, name: str, **settings: object) -> Generation:
        """Sample one turn of a rollout of its own."""
        sampling = replace(Sampling(max_tokens=24, seed=3), **settings)
        self.engine.open_session(name)
        try:
            return await self.engine.generate(PROMPT, sampling, name)
        finally:
            self.engine.close_session(name)

    @property
    def vllm(self) -> VllmEngine:
        assert isinstance(self.engine, VllmEngine)
        return self.engine


def publish(learner: Learner, version: int) -> PublishedWeights:
    """Publish with the learner's own log-probabilities of some tokens."""
    (scores,) = learner.logprobs([probe_row(PROMPT)])
    has_adapter = learner.settings.adapter.kind != "none"
    weights = learner.publish_adapter(version) if has_adapter else learner.publish(version)
    return replace(weights, probe=LogprobProbe(tuple(PROMPT), tuple(map(float, scores[1:]))))


def learner_logprobs(learner: Learner, generation: Generation, temperature: float) -> list[float]:
    """The learner's log-probabilities of the sampled tokens."""
    row = replace(probe_row([*PROMPT, *generation.ids]), temperature=temperature)
    return learner.logprobs([row])[0][len(PROMPT) :].tolist()


def greedy_ids(learner: Learner, count: int) -> tuple[int, ...]:
    """The most likely tokens by the model's own forward pass, without any cache."""
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(learner.model(torch.tensor([ids])).logits[0, -1].argmax()))  # type: ignore[operator]
    return tuple(ids[len(PROMPT) :])


def assert_close(generation: Generation, expected: Sequence[float]) -> None:
    assert len(generation.ids) == len(generation.logprobs) == len(generation.versions)
    assert max(abs(a - b) for a, b in zip(generation.logprobs, expected, strict=True)) < TOLERANCE


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [make_tiny_llm(folder / f"seed-{seed}", seed=seed) for seed in range(2)]


def learners_of(kind: str, folders: Sequence[Path]) -> list[Learner]:
    """Two policies: two models, or two adapters of the first."""
    if kind != WITH_ADAPTERS:
        return [Learner.from_folder(folder, LearnerSettings(), seed=0) for folder in folders]
    settings = LearnerSettings.model_validate({"adapter": {"kind": "lora", "rank": RANK}})
    learners = [Learner.from_folder(folders[0], settings, seed=number) for number in range(2)]
    for number, learner in enumerate(learners):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for layer in adapter_layers(learner.policy).values():
                layer.lora_B["default"].weight.normal_(std=0.05, generator=generator)
    return learners


def vllm_engine(model: Path, folder: Path, kind: str, engines: list[Engines]) -> VllmEngine:
    """Servers with the first model: two that read files, or one that gets its weights in another way."""
    count = 2 if kind == "vllm" else 1
    server = VllmProcessSettings(
        executable=VLLM,
        dtype="float32",
        max_num_seqs=16,
        cpu_kv_cache_gib=1,
        enforce_eager=True,
        shutdown_seconds=0,
    )
    settings = VllmEngineSettings(
        replicas=count,
        server=server,
        environments=[{"OMP_NUM_THREADS": "1"}] * count,
        recovery_seconds=600,
        weight_transfer=WeightTransferSettings(backend=BACKENDS[kind], device="cpu"),
    )
    context = EngineContext(
        model,
        folder,
        CONTEXT,
        adapter_rank=RANK,
        on_failed_push=lambda: engines[0].failed_pushes.append(None),
        on_failover=lambda: engines[0].failovers.append(None),
    )
    return build_vllm_engine(settings, context)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        "torch",
        "scripted",
        *(pytest.param(kind, marks=NEEDS_VLLM) for kind in BACKENDS),
    ],
)
async def engines(
    request: pytest.FixtureRequest, folders: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engines]:
    """One engine of each kind, shared by all tests of the module."""
    tokenizer = ModelTokenizer.from_folder(folders[0])
    built: list[Engines] = []
    if request.param == "torch":
        engine: RolloutEngine = TorchEngine.from_folder(folders[0])
    elif request.param == "scripted":
        engine = ScriptedRolloutEngine(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)
    else:
        engine = vllm_engine(folders[0], tmp_path_factory.mktemp("engine"), request.param, built)
    learners = learners_of(request.param, folders)
    built.append(Engines(request.param, engine, tokenizer, learners, [], []))
    try:
        await engine.start()
        await built[0].push(0)
        yield built[0]
    finally:
        await engine.close()


async def test_greedy_tokens_and_their_logprobs_are_the_learners(engines: Engines) -> None:
    if engines.kind in WITHOUT_MODEL:
        pytest.skip("it has no model")
    for number in (1, 0):
        learner = await engines.push(number)
        generation = await engines.sample(f"greedy-{number}", temperature=0.0)
        assert generation.ids == greedy_ids(learner, 24)
        assert_close(generation, learner_logprobs(learner, generation, 1.0))


async def test_sampled_logprobs_are_those_after_temperature(engines: Engines) -> None:
    if engines.kind in WITHOUT_MODEL:
        pytest.skip("it has no model")
    learner = await engines.push(0)
    generation = await engines.sample("warm", temperature=0.6)
    assert_close(generation, learner_logprobs(learner, generation, 0.6))
    scores = await engines.engine.score([*PROMPT, *generation.ids], len(PROMPT))
    expected = learner_logprobs(learner, generation, 1.0)
    assert max(abs(a - b) for a, b in zip(scores, expected, strict=True)) < TOLERANCE


async def test_a_seed_fixes_the_tokens_whatever_runs_beside_them(engines: Engines) -> None:
    alone = await engines.sample("alone", seed=11)
    crowd = await asyncio.gather(*(engines.sample(f"r{seed}", seed=seed) for seed in range(8, 16)))
    assert crowd[3].ids == alone.ids
    assert len({generation.ids for generation in crowd}) == len(crowd)


async def test_a_stop_string_ends_the_turn_at_the_token_that_completes_it(engines: Engines) -> None:
    whole = await engines.sample("whole", seed=5, max_tokens=40)
    stop = next(
        text
        for start in range(8, 38)
        if len(text := engines.tokenizer.decode(whole.ids[start : start + 2])) == 2 and text.isascii()
    )
    detector = StopDetector(engines.tokenizer, engines.tokenizer.vocab_size)
    end = next(n for n in range(1, 41) if detector.completes(whole.ids[:n], (stop,)))
    stopped = await engines.sample("stopped", seed=5, max_tokens=40, stop=("never this", stop))
    assert (stopped.ids, stopped.finish_reason) == (whole.ids[:end], "stop")
    assert whole.finish_reason == "length"


async def test_the_end_of_a_turn_ends_it_and_is_kept(engines: Engines) -> None:
    found = await asyncio.gather(
        *(engines.sample(f"hot-{seed}", seed=seed, temperature=2.0, max_tokens=200) for seed in range(16))
    )
    ended = [generation for generation in found if generation.finish_reason == "stop"]
    assert ended
    for generation in found:
        sampled_end = [token in engines.tokenizer.eos_ids for token in generation.ids]
        assert sampled_end[:-1] == [False] * (len(generation.ids) - 1)
        assert sampled_end[-1] == (generation.finish_reason == "stop")


async def test_weights_wait_for_running_turns_and_every_token_names_its_version(engines: Engines) -> None:
    await engines.push(0)
    before = engines.version
    running = [asyncio.create_task(engines.sample(f"long-{n}", seed=n, max_tokens=120)) for n in range(4)]
    while not (await engines.engine.health()).running:
        await asyncio.sleep(0.01)
    learner = await engines.push(1)
    turns = await asyncio.gather(*running)
    assert {version for turn in turns for version in turn.versions} <= {before, engines.version}
    assert all(len(set(turn.versions)) == 1 for turn in turns)
    health = await engines.engine.health()
    assert (health.version, health.fingerprint) == (engines.version, publish(learner, 0).fingerprint)
    after = await engines.sample("after", seed=1)
    assert set(after.versions) == {engines.version}


async def test_an_interrupted_turn_goes_on_under_the_new_weights(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(engines.engine, VllmEngine) or engines.kind == WITH_ADAPTERS:
        pytest.skip("it lets turns end")
    for replica in engines.vllm.replicas:
        monkeypatch.setattr(replica, "_interrupts_turns", True)
    served: dict[int, Learner] = {}
    interrupted: list[Generation] = []

    async def sample_turns(caller: int) -> None:
        for number in itertools.count():
            turn = await engines.sample(f"long-{caller}-{number}", seed=number, max_tokens=400)
            assert len(turn.ids) == 400 or turn.finish_reason == "stop"
            if len(set(turn.versions)) > 1:
                interrupted.append(turn)

    callers: list[asyncio.Task[None]] = []
    # A push can come before the first token of a turn or after its last, so both go on until one met another.
    for number in range(12):
        learner = await engines.push(number % len(engines.learners))
        served[engines.version] = learner
        if interrupted:
            break
        callers = callers or [asyncio.create_task(sample_turns(caller)) for caller in range(4)]
        while not (await engines.engine.health()).running:
            await asyncio.sleep(0.01)
    for caller in callers:
        caller.cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
    assert interrupted
    for turn in interrupted:
        scores = {version: learner_logprobs(served[version], turn, 1.0) for version in set(turn.versions)}
        assert_close(turn, [scores[version][place] for place, version in enumerate(turn.versions)])
        assert list(turn.versions) == sorted(turn.versions)


async def test_a_cancelled_turn_ends_on_the_engine(engines: Engines) -> None:
    turn = asyncio.create_task(engines.sample("cancelled", max_tokens=450))
    while not (await engines.engine.health()).running:
        await asyncio.sleep(0.01)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    async with asyncio.timeout(60):
        while (await engines.engine.health()).running:
            await asyncio.sleep(0.01)
        if isinstance(engines.engine, VllmEngine):
            while any([await running_requests(replica.client.base_url) for replica in engines.vllm.replicas]):
                await asyncio.sleep(0.05)
    assert (await engines.sample("next")).ids


async def test_a_server_counts_the_calls_of_its_trainer_and_no_probes(engines: Engines) -> None:
    """The pod of a server knows by this count whether there still is a trainer."""
    if not isinstance(engines.engine, VllmEngine):
        pytest.skip("it is no server")
    client = engines.vllm.replicas[0].client
    page = f"{client.base_url}/metrics"
    before = await asyncio.to_thread(count_requests, page)
    assert before
    assert await client.is_healthy()
    assert await asyncio.to_thread(count_requests, page) == before
    # as the trainer asks a server of somebody else, before and after it has the run's weights
    await client.find_model()
    await (client.adapters() if engines.kind == WITH_ADAPTERS else client.served_weights())
    assert await asyncio.to_thread(count_requests, page) == before + 2


async def test_turns_of_a_killed_server_continue_on_the_other_one_with_the_same_tokens(engines: Engines) -> None:
    if engines.kind != "vllm":
        pytest.skip("it has no two servers")
    learner = await engines.push(0)
    names = [f"turn-{n}" for n in range(6)]
    quiet = [await engines.sample(name, seed=n, max_tokens=200) for n, name in enumerate(names)]
    turns = [asyncio.create_task(engines.sample(name, seed=n, max_tokens=200)) for n, name in enumerate(names)]
    victim, other = engines.vllm.replicas
    while not (victim.in_flight and other.in_flight):
        await asyncio.sleep(0.01)
    assert isinstance(victim.server, VllmServer) and victim.server.pid is not None
    for process in [*psutil.Process(victim.server.pid).children(recursive=True), psutil.Process(victim.server.pid)]:
        os.kill(process.pid, signal.SIGKILL)
    results = await asyncio.gather(*turns)
    assert [turn.ids for turn in results] == [turn.ids for turn in quiet]
    assert engines.failovers
    for turn in results:
        assert_close(turn, learner_logprobs(learner, turn, 1.0))


async def test_a_server_that_fails_a_push_is_restarted_and_serves_the_newest_weights(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engines.kind != "vllm":
        pytest.skip("it has no two servers")
    # The victim of the test above may still be starting. A push waits for it, and by then the other server, whose push
    # fails here, may have been restarted and not count as failed any more.
    await engines.push(0)
    async with asyncio.timeout(600):
        while any(replica.state != "serving" for replica in engines.vllm.replicas):
            await asyncio.sleep(0.1)
    bad = engines.vllm.replicas[1]
    send = FileConnection.send
    failed: list[str] = []

    async def send_badly(self: FileConnection, staged: StagedWeights) -> None:
        if self.client is bad.client and not failed:
            failed.append(staged.name)
            staged = replace(staged, updates=({**staged.updates[0], "sha256": "0" * 64},))
        await send(self, staged)

    monkeypatch.setattr(FileConnection, "send", send_badly)
    before = len(engines.failed_pushes)
    learner = await engines.push(1)
    assert failed and len(engines.failed_pushes) > before
    first = await engines.sample("during", temperature=0.0)
    async with asyncio.timeout(600):
        while any(replica.state != "serving" for replica in engines.vllm.replicas):
            await asyncio.sleep(0.1)
    # Two rollouts at once: each server gets one.
    both = await asyncio.gather(*(engines.sample(f"both-{n}", temperature=0.0) for n in range(2)))
    assert {first.ids, *(turn.ids for turn in both)} == {greedy_ids(learner, 24)}
    assert {*first.versions, *both[0].versions, *both[1].versions} == {engines.version}


async def running_requests(base_url: str) -> float:
    """The number of requests that a server computes or queues."""
    import httpx

    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{base_url}/metrics")).text
    lines = [
        line for line in text.splitlines() if line.startswith(("vllm:num_requests_running", "vllm:num_requests_w"))
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if "{" in line and "by_reason" not in line)
