"""Chat completions that fail: a wrong key, overload, clients that disconnect, engines and retrievers that break."""

import asyncio
from pathlib import Path

import openai
import pytest

from searchrl.errors import Unavailable
from services.generator.engines.reader import ReaderEngine
from services.generator.methods.direct import DirectMethod
from tests.fakes.generator_parts import PASSAGES, PassageStore, answerer_of
from tests.fakes.scripted_engine import FOREVER, ScriptedEngine
from tests.unit.generator.openai_api.conftest import (
    ask,
    methods_with,
    run_generator,
)


async def test_a_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("- {name: app, key: right, scope: read}\n")
    async with run_generator(ReaderEngine(), keys_file=keys) as generator:
        async with generator.client("wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="not valid"):
                await client.chat.completions.create(model="reader", messages=ask("x"))
        async with generator.client("right") as client:
            assert (await client.chat.completions.create(model="reader", messages=ask("x"))).choices


async def test_overload_is_a_rate_limit_error_with_retry_after() -> None:
    engine = ScriptedEngine(FOREVER)
    async with run_generator(engine, max_generations=1) as generator, generator.client() as client:
        first = asyncio.create_task(client.chat.completions.create(model="scripted", messages=ask("x")))
        await engine.waiting.wait()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="scripted", messages=ask("x"))
        assert int(caught.value.response.headers["retry-after"]) >= 1
        first.cancel()
        await asyncio.wait({first})
        await asyncio.wait_for(engine.cancelled.wait(), 5)


@pytest.mark.parametrize("model", ["scripted", "searchrl/direct"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_work_stops_if_the_client_disconnects(model: str, stream: bool) -> None:
    engine = ScriptedEngine(FOREVER)
    async with run_generator(engine, [DirectMethod(answerer_of(engine))]) as generator, generator.client() as client:
        call = asyncio.create_task(
            client.chat.completions.create(model=model, messages=ask("x"), stream=stream)  # type: ignore[call-overload]
        )
        await engine.waiting.wait()
        call.cancel()
        await asyncio.wait({call})
        await asyncio.wait_for(engine.cancelled.wait(), 5)


@pytest.mark.parametrize("model", ["scripted", "searchrl/direct"])
async def test_an_engine_that_fails_before_the_first_word_is_a_503(model: str) -> None:
    engine = ScriptedEngine(Unavailable("engine gone"))
    async with run_generator(engine, [DirectMethod(answerer_of(engine))]) as generator, generator.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="engine gone") as caught:
                await client.chat.completions.create(model=model, messages=ask("x"), stream=stream)
            assert caught.value.status_code == 503


@pytest.mark.parametrize("model", ["scripted", "searchrl/direct"])
async def test_an_engine_that_fails_in_the_middle_ends_the_stream_with_an_error(model: str) -> None:
    engine = ScriptedEngine("one two three", break_after=2, break_with=Unavailable("engine gone"))
    async with run_generator(engine, [DirectMethod(answerer_of(engine))]) as generator, generator.client() as client:
        stream = await client.chat.completions.create(model=model, messages=ask("x"), stream=True)
        words: list[str] = []
        with pytest.raises(openai.APIError, match="engine gone"):
            async for part in stream:
                words.append(part.choices[0].delta.content or "")
    assert "".join(words) == "one two"


async def test_a_retriever_that_fails_is_an_error_and_never_an_answer() -> None:
    engine = ReaderEngine()
    store = PassageStore(PASSAGES, failures=[Unavailable("retriever gone")] * 2)
    async with run_generator(engine, methods_with(engine, store)) as generator, generator.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="retriever gone"):
                await client.chat.completions.create(model="searchrl/rag", messages=ask("x"), stream=stream)
