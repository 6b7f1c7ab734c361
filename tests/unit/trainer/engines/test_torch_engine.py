"""The in-process engine: log-probabilities of a plain forward pass, independent rollouts, weights, stops and failures.

Log-probabilities are those after the temperature; nothing cached under old weights is used after an update; in lockstep
the results do not depend on delays.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

import pytest
import torch

from searchrl.agent.types import Generation, Sampling
from searchrl.errors import Conflict, InvalidRequest, ServiceError, Unavailable
from searchrl.platform.health import Health
from services.trainer.engines.decoder import Row
from services.trainer.engines.torch_engine import FAILURES_TO_GIVE_UP, TorchEngine, _Request
from services.trainer.learner.model_folder import fingerprint_tensors
from services.trainer.learner.reports import PublishedWeights
from tests.fakes.tiny_policy import EOS, STOP, STOP_IDS, NumberedWords, plain_logprobs, random_ids, tiny_model

Delay = Callable[[], float]


@asynccontextmanager
async def engine_of(kind: str = "qwen3", **options) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(tiny_model(kind=kind), NumberedWords(), **options)
    try:
        yield engine
    finally:
        await engine.close()


async def play(
    engine: TorchEngine, number: int, prompt: list[int], turns: int = 3, delay: Delay | None = None, temperature=1.0
) -> tuple[list[int], list[tuple[int, Generation]]]:
    """Run a rollout; an observation follows each turn. Returns all ids, and the generations with their starts."""
    ids, generations, name = list(prompt), [], f"r{number:03d}"
    for turn in range(turns):
        if delay is not None:
            await asyncio.sleep(delay())
        sampling = Sampling(temperature=temperature, max_tokens=3 + number % 5, stop=(STOP,), seed=100 * number + turn)
        generation = await engine.generate(ids, sampling, name)
        generations.append((len(ids), generation))
        ids += [*generation.ids, *random_ids(2 + (number + turn) % 4, 1000 * number + turn)]
    engine.close_session(name)
    return ids, generations


def assert_logprobs_match(model, ids, generations, temperature=1.0) -> None:
    plain = plain_logprobs(model, ids, temperature)
    for start, generation in generations:
        assert ids[start : start + len(generation.ids)] == list(generation.ids)
        expected = plain[start - 1 : start - 1 + len(generation.ids)]
        assert generation.logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("lockstep", [True, False])
async def test_logprobs_equal_a_plain_forward_pass_for_ragged_batches_over_several_turns(kind, lockstep) -> None:
    prompts = [random_ids(5 + number // 2, number // 2) for number in range(12)]  # pairs share a prompt
    async with engine_of(kind, lockstep=lockstep) as engine:
        for number in range(12):
            engine.open_session(f"r{number:03d}")
        played = await asyncio.gather(*(play(engine, number, prompts[number]) for number in range(12)))
        assert engine.counters().reused_tokens > 100  # the caches were used; otherwise this test would show nothing
    model = tiny_model(kind=kind)
    for ids, generations in played:
        assert_logprobs_match(model, ids, generations)


async def test_logprobs_are_those_after_the_temperature() -> None:
    async with engine_of() as engine:
        ids, generations = await play(engine, 4, random_ids(9, 1), temperature=0.6)
    assert_logprobs_match(tiny_model(), ids, generations, temperature=0.6)


async def test_a_rollouts_tokens_do_not_depend_on_what_else_decodes() -> None:
    prompts = [random_ids(4 + number, number) for number in range(9)]
    async with engine_of() as engine:
        together = await asyncio.gather(*(play(engine, number, prompts[number]) for number in range(9)))
    for number in (0, 4, 8):
        async with engine_of() as engine:
            alone = await play(engine, number, prompts[number])
        assert alone[0] == together[number][0]


async def test_lockstep_results_are_equal_to_the_bit_whatever_the_delays() -> None:
    async def run(seed: int) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        rng = random.Random(seed)
        async with engine_of(lockstep=True, slots=8) as engine:  # fewer slots than rollouts: batches are split too
            for number in range(12):
                engine.open_session(f"r{number:03d}")
            plays = [play(engine, n, random_ids(6, n // 3), delay=lambda: rng.random() * 0.01) for n in range(12)]
            rng.shuffle(plays)
            results = await asyncio.gather(*plays)
        return sorted((generation.ids, generation.logprobs) for _, turns in results for _, generation in turns)

    assert await run(1) == await run(2)


async def test_a_lockstep_batch_waits_for_every_live_session() -> None:
    async with engine_of(lockstep=True) as engine:
        engine.open_session("a")
        engine.open_session("b")
        first = asyncio.create_task(engine.generate([5, 6], Sampling(max_tokens=2, seed=1), "a"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(first), 0.05)
        engine.close_session("b")
        assert (await first).finish_reason == "length"


async def test_greedy_takes_the_most_likely_token() -> None:
    async with engine_of() as engine:
        generation = await engine.generate(random_ids(7, 3), Sampling(temperature=0.0, max_tokens=6), "a")
    ids = random_ids(7, 3)
    model = tiny_model()
    for token in generation.ids:
        with torch.no_grad():
            assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


async def test_the_token_that_completes_a_stop_string_is_kept_and_ends_the_row() -> None:
    async with engine_of() as engine:
        _bias(engine, STOP_IDS[1], after=STOP_IDS[0])
        generation = await engine.generate([9, STOP_IDS[0]], Sampling(0.0, max_tokens=5, stop=(STOP,)), "a")
        # all of the stop string must be sampled: its first half is in the prompt, so nothing is completed here
        assert generation.finish_reason == "length"
        _bias(engine, STOP_IDS[0], after=9)
        generation = await engine.generate([7, 9], Sampling(0.0, max_tokens=5, stop=(STOP,)), "b")
    assert generation.ids == STOP_IDS
    assert generation.finish_reason == "stop"


async def test_an_end_token_ends_the_row_and_is_kept() -> None:
    async with engine_of() as engine:
        _bias(engine, EOS, after=9)
        generation = await engine.generate([7, 9], Sampling(0.0, max_tokens=5), "a")
    assert (generation.ids, generation.finish_reason) == ((EOS,), "stop")


async def test_nothing_cached_under_old_weights_is_used_after_an_update() -> None:
    prompt, new = random_ids(12, 1), tiny_model(seed=1)
    tensors = dict(new.named_parameters())
    async with engine_of() as engine:
        first = await engine.generate(prompt, Sampling(max_tokens=4, seed=1), "a")
        await engine.load_weights(PublishedWeights(7, fingerprint_tensors(tensors), tensors))
        ids = [*prompt, *first.ids, 9, 9]
        second = await engine.generate(ids, Sampling(max_tokens=4, seed=2), "a")
    assert first.versions == (0,) * len(first.ids)
    assert second.versions == (7,) * len(second.ids)
    assert_logprobs_match(new, [*ids, *second.ids], [(len(ids), second)])


async def test_weights_wait_for_the_running_batch_and_no_row_mixes_versions() -> None:
    tensors = dict(tiny_model(seed=1).named_parameters())
    async with engine_of() as engine:
        running = [
            asyncio.create_task(engine.generate(random_ids(5, n), Sampling(max_tokens=40, seed=n), f"r{n}"))
            for n in range(4)
        ]
        await asyncio.sleep(0)
        await engine.load_weights(PublishedWeights(1, fingerprint_tensors(tensors), tensors))
        rows = await asyncio.gather(*running)
    assert all(len(set(row.versions)) == 1 for row in rows)


@pytest.mark.parametrize("damage", ["fingerprint", "shape", "missing"])
async def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(damage: str) -> None:
    tensors: dict[str, torch.Tensor] = dict(tiny_model(seed=1).named_parameters())
    fingerprint = fingerprint_tensors(tensors)
    name = next(iter(tensors))
    if damage == "shape":
        tensors[name] = tensors[name][:-1]
    elif damage == "missing":
        del tensors[name]
        fingerprint = fingerprint_tensors(tensors)
    else:
        fingerprint = "0" * 64
    async with engine_of() as engine:
        before = await engine.health()
        with pytest.raises(Conflict):
            await engine.load_weights(PublishedWeights(3, fingerprint, tensors))
        after = await engine.health()
        generation = await engine.generate(random_ids(5, 0), Sampling(max_tokens=3, seed=0), "a")
    assert (after.version, after.fingerprint) == (before.version, before.fingerprint)
    ids = random_ids(5, 0)
    assert_logprobs_match(tiny_model(), [*ids, *generation.ids], [(5, generation)])


async def test_score_equals_a_plain_forward_pass() -> None:
    ids = random_ids(20, 4)
    async with engine_of() as engine:
        assert await engine.score(ids, 8) == pytest.approx(plain_logprobs(tiny_model(), ids)[7:], abs=1e-5)


async def test_health_names_the_fingerprint_of_the_loaded_weights() -> None:
    async with engine_of() as engine:
        assert (await engine.health()).fingerprint == fingerprint_tensors(dict(tiny_model().named_parameters()))


@pytest.mark.parametrize("prompt", [[], [64], [-1], list(range(4, 60)) * 5])
async def test_prompts_that_cannot_be_fed_are_refused(prompt: list[int]) -> None:
    async with engine_of() as engine:
        with pytest.raises(InvalidRequest):
            await engine.generate(prompt, Sampling(max_tokens=1), "a")


async def test_a_row_ends_where_the_models_context_ends() -> None:
    async with engine_of() as engine:
        generation = await engine.generate(random_ids(250, 0), Sampling(max_tokens=100, seed=3), "a")
    assert generation.finish_reason in ("length", "stop")
    assert 250 + len(generation.ids) <= 256


async def test_padding_behind_the_context_takes_no_memory_and_changes_nothing() -> None:
    """A long and a short rollout go on together: the long one's few new tokens are padded beyond the context."""
    sampling, short = Sampling(max_tokens=4, seed=1), random_ids(120, 2)
    async with engine_of(lockstep=True, context_tokens=127) as engine:
        for name in "ab":
            engine.open_session(name)
        first, _ = await asyncio.gather(
            engine.generate(random_ids(100, 1), sampling, "a"), engine.generate(short[:5], sampling, "b")
        )
        long = [*random_ids(100, 1), *first.ids, *random_ids(5, 3)]
        second, other = await asyncio.gather(
            engine.generate(long, sampling, "a"), engine.generate(short, sampling, "b")
        )
        assert engine._decoder._pool._columns == 128
    assert_logprobs_match(tiny_model(), [*long, *second.ids], [(100, first), (len(long), second)])
    assert_logprobs_match(tiny_model(), [*short, *other.ids], [(120, other)])


async def test_a_cancelled_request_frees_its_row() -> None:
    async with engine_of() as engine:
        endless = asyncio.create_task(engine.generate([5], Sampling(max_tokens=200, seed=0), "a"))
        await asyncio.sleep(0.01)
        endless.cancel()
        await asyncio.gather(endless, return_exceptions=True)
        generation = await engine.generate([5, 6], Sampling(max_tokens=2, seed=0), "a")
        assert generation.finish_reason in ("length", "stop")
        assert (await engine.health()).running <= 1


async def test_a_retry_that_waits_is_answered_although_the_first_request_is_cancelled(monkeypatch) -> None:
    async with engine_of(lockstep=True) as engine:
        step, decoding, go_on = engine._decoder.step, threading.Event(), threading.Event()

        def held() -> list:
            decoding.set()
            assert go_on.wait(10)
            return step()

        monkeypatch.setattr(engine._decoder, "step", held)
        first = asyncio.create_task(engine.generate([5], Sampling(max_tokens=200, seed=0), "a"))
        await asyncio.to_thread(decoding.wait, 10)
        retry = asyncio.create_task(engine.generate([5, 6], Sampling(max_tokens=2, seed=0), "a"))
        await asyncio.sleep(0)  # the retry waits: in lockstep nothing joins a running batch
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        go_on.set()
        assert (await asyncio.wait_for(retry, 10)).finish_reason in ("length", "stop")


@pytest.mark.parametrize("kept", [False, True])
async def test_two_requests_of_one_rollout_that_start_together_are_both_answered(kept: bool) -> None:
    sampling = Sampling(max_tokens=3, seed=0)
    prompts = random_ids(9, 1), random_ids(7, 2)
    async with engine_of() as engine:
        if kept:
            await engine.generate(prompts[0][:6], sampling, "a")
        # both were admitted to the engine one after the other, and then two slots became free in the same step
        requests = [_Request(Row("a", tuple(prompt), sampling, 0), Future()) for prompt in prompts]
        with engine._changed:
            engine._admitted.extend(requests)
            engine._changed.notify()
        waiting = (asyncio.wrap_future(request.future) for request in requests)
        generations = await asyncio.wait_for(asyncio.gather(*waiting), 10)
        tensors = dict(tiny_model(seed=1).named_parameters())
        await asyncio.wait_for(engine.load_weights(PublishedWeights(1, fingerprint_tensors(tensors), tensors)), 10)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert_logprobs_match(tiny_model(), [*prompt, *generation.ids], [(len(prompt), generation)])


async def test_more_rollouts_than_slots_are_all_served_correctly() -> None:
    async with engine_of(slots=3) as engine:
        played = await asyncio.gather(*(play(engine, n, random_ids(5 + n, n)) for n in range(10)))
    for ids, generations in played:
        assert_logprobs_match(tiny_model(), ids, generations)


async def test_a_prompt_that_departs_from_the_cached_one_is_fed_again_from_there() -> None:
    async with engine_of() as engine:
        await engine.generate(random_ids(12, 0), Sampling(max_tokens=3, seed=0), "a")
        other = [*random_ids(12, 0)[:6], *random_ids(6, 5)]
        generation = await engine.generate(other, Sampling(max_tokens=3, seed=1), "a")
    assert_logprobs_match(tiny_model(), [*other, *generation.ids], [(12, generation)])


async def test_a_failed_batch_fails_its_requests_and_the_engine_goes_on(monkeypatch) -> None:
    async with engine_of() as engine:
        step = engine._decoder.step

        def broken() -> list:
            monkeypatch.setattr(engine._decoder, "step", step)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._decoder, "step", broken)
        with pytest.raises(ServiceError, match="internal error in torch engine"):
            await engine.generate([5, 6], Sampling(max_tokens=2, seed=0), "a")
        assert len((await engine.generate([5, 6], Sampling(max_tokens=2, seed=0), "a")).ids) == 2


class NativePanic(BaseException):
    """What a native library raises; it is not an ``Exception``."""


@pytest.mark.parametrize("raised", [RuntimeError("out of memory"), NativePanic("panicked")])
async def test_an_engine_that_fails_again_and_again_refuses_everything_and_says_so(monkeypatch, raised) -> None:
    health = Health()
    health.set_ready()
    async with engine_of(health=health) as engine:

        def broken() -> list:
            raise raised

        monkeypatch.setattr(engine._decoder, "step", broken)
        for number in range(FAILURES_TO_GIVE_UP):
            assert health.alive
            with pytest.raises(ServiceError, match="internal error"):
                await engine.generate([5, 6], Sampling(max_tokens=2, seed=0), f"r{number}")
        assert (health.alive, health.ready, (await engine.health()).ready) == (False, False, False)
        with pytest.raises(Unavailable, match="gave up after 5 failures"):
            await engine.generate([5, 6], Sampling(max_tokens=2), "late")
        with pytest.raises(Unavailable, match="gave up"):
            await engine.score([5, 6, 7], 1)


async def test_nobody_waits_for_an_engine_whose_thread_broke(monkeypatch) -> None:
    health = Health()
    async with engine_of(lockstep=True, health=health) as engine:
        engine.open_session("a")
        engine.open_session("b")
        waiting = asyncio.create_task(engine.generate([5, 6], Sampling(max_tokens=2), "a"))
        await asyncio.sleep(0)  # the request waits for the other session

        def broken() -> bool:
            raise NativePanic("panicked")

        monkeypatch.setattr(engine, "_wait_for_work", broken)
        engine.close_session("b")  # wakes the thread from the original wait, for one batch
        await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(engine.generate([5], Sampling(max_tokens=1), "c"), 10)
    assert not health.alive


async def test_a_panic_between_batches_fails_the_one_who_asked(monkeypatch) -> None:
    def panic(*_args: object) -> dict:
        raise NativePanic("panicked")

    monkeypatch.setattr("services.trainer.engines.torch_engine.causal_mask", panic)
    async with engine_of() as engine:
        with pytest.raises(ServiceError, match="internal error"):
            await engine.score([5, 6, 7], 1)
        assert len((await engine.generate([5, 6], Sampling(max_tokens=2, seed=0), "a")).ids) == 2


async def test_a_closed_engine_refuses_requests() -> None:
    async with engine_of() as engine:
        pass
    with pytest.raises(Unavailable):
        await engine.generate([5], Sampling(max_tokens=1), "a")


def _bias(engine: TorchEngine, token: int, after: int) -> None:
    """Make ``token`` certain whenever the last token is ``after``, by patching the decoder's forward pass."""
    forward = engine._decoder._forward

    def biased(first: int, starts_B, ids_BT, lasts_B):
        logits = forward(first, starts_B, ids_BT, lasts_B).clone()
        last = ids_BT[torch.arange(len(ids_BT)), lasts_B]
        logits[last == after, token] += 1000.0
        return logits

    engine._decoder._forward = biased
