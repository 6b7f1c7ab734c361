"""The engine over an OpenAI-compatible API: replies, streams, retries and failures."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from searchrl.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServiceError, Unavailable
from searchrl.platform.request_context import deadline
from searchrl.platform.retry import RetryPolicy
from services.generator.engines.base import ChatMessage, ChatReply
from services.generator.engines.openai import OpenAIEngine
from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_http import EngineMisconfigured
from services.generator.metrics import GeneratorMetrics
from tests.fakes.openai_stub import OK, USAGE_CHUNK, OpenAIStub, chunk, said, serving, whole

QUESTION = (ChatMessage("system", "Be short."), ChatMessage("user", "Capital of France?"))
# Retries as usual, but with waits of milliseconds: no test here is about their length.
FAST = RetryPolicy(attempts=3, first_seconds=0.001, max_seconds=0.002)


opened: list[OpenAIEngine] = []


@pytest.fixture(autouse=True)
async def closed_engines() -> AsyncIterator[None]:
    yield
    while opened:
        await opened.pop().close()


def engine_at(url: str, registry: CollectorRegistry | None = None, **settings: Any) -> OpenAIEngine:
    metrics = GeneratorMetrics(registry or CollectorRegistry()).engine("generator")
    ports = {name: settings.pop(name) for name in ("retries", "outcome") if name in settings}
    chosen = ChatEngineSettings(kind="url", base_url=url, model="stub-model", **settings)
    engine = OpenAIEngine(chosen, metrics, use_proxies=False, **{"retries": FAST, **ports})
    opened.append(engine)
    return engine


async def test_a_reply_comes_with_its_usage_and_the_models_own_name() -> None:
    stub = OpenAIStub(OK)
    async with serving(stub) as url:
        reply = await engine_at(url, key="secret").chat(QUESTION, max_tokens=9, temperature=0.5)
    assert reply == ChatReply("Paris", "stub-model", 5, 1, "stop")
    assert stub.requests == [
        {
            "model": "stub-model",
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Capital of France?"},
            ],
            "max_tokens": 9,
            "temperature": 0.5,
        }
    ]
    assert stub.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("url_suffix", ["", "/", "/v1", "/v1/"])
async def test_the_url_may_end_in_v1_or_not(url_suffix: str) -> None:
    stub = OpenAIStub(OK)
    async with serving(stub) as url:
        await engine_at(url + url_suffix).chat(QUESTION, max_tokens=9)
    assert stub.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_a_temporary_failure_is_retried(status: int) -> None:
    stub = OpenAIStub(status, status, OK)
    registry = CollectorRegistry()
    async with serving(stub) as url:
        assert (await engine_at(url, registry).chat(QUESTION, max_tokens=9)).text == "Paris"
    assert len(stub.requests) == 3
    kind = "overloaded" if status == 429 else "unavailable"
    failed = registry.get_sample_value(
        "searchrl_generator_engine_attempts_failed_total", {"engine": "generator", "kind": kind}
    )
    assert failed == 2


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (500, Unavailable),
        (429, Overloaded),
        (whole(choices=[]), Unavailable),
        (said(None, completion_tokens=0), Unavailable),
        (said("", completion_tokens=0), Unavailable),
        (b"<html>gateway</html>", Unavailable),
        (b"{", Unavailable),
        (b"[]", Unavailable),
        (b'{"choices": "yes"}', Unavailable),
    ],
)
async def test_a_lasting_failure_is_an_error_and_never_an_empty_answer(step: Any, error: type[ServiceError]) -> None:
    stub = OpenAIStub(step)
    async with serving(stub) as url:
        with pytest.raises(error):
            await engine_at(url).chat(QUESTION, max_tokens=9)
    assert len(stub.requests) == FAST.attempts


async def test_a_model_that_ends_its_turn_at_once_has_an_empty_answer() -> None:
    async with serving(OpenAIStub(said("", completion_tokens=1))) as url:
        assert (await engine_at(url).chat(QUESTION, max_tokens=9)).text == ""


@pytest.mark.parametrize(
    ("status", "error"), [(400, InvalidRequest), (401, EngineMisconfigured), (404, EngineMisconfigured)]
)
async def test_a_refusal_is_not_retried(status: int, error: type[ServiceError]) -> None:
    stub = OpenAIStub(status)
    async with serving(stub) as url:
        with pytest.raises(error, match=str(status)) as caught:
            await engine_at(url).chat(QUESTION, max_tokens=9)
    assert type(caught.value) is error
    assert len(stub.requests) == 1


async def test_an_engine_that_cannot_be_reached_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unavailable, match="cannot be reached"):
        await engine_at(url).chat(QUESTION, max_tokens=9)


async def test_an_engine_that_hangs_is_aborted_at_the_timeout() -> None:
    stub = OpenAIStub("hang")
    async with serving(stub) as url:
        engine = engine_at(url, timeout_seconds=0.2)
        while not stub.requests:  # on a busy machine the time may pass before the request has arrived
            with pytest.raises(DeadlineExceeded, match="in time"):
                await engine.chat(QUESTION, max_tokens=9)
        await asyncio.wait_for(stub.disconnected.wait(), 5)


async def test_the_callers_deadline_is_the_tighter_one() -> None:
    async with serving(OpenAIStub("hang")) as url:
        with deadline(0.2), pytest.raises((Unavailable, DeadlineExceeded)):
            await engine_at(url, timeout_seconds=60).chat(QUESTION, max_tokens=9)


async def test_choices_are_sent_only_to_a_server_that_accepts_them() -> None:
    stub = OpenAIStub(said("yes"))
    async with serving(stub) as url:
        await engine_at(url, structured_outputs=True).chat(QUESTION, max_tokens=9, choices=("yes", "no"))
        await engine_at(url).chat(QUESTION, max_tokens=9, choices=("yes", "no"))
    assert stub.requests[0]["structured_outputs"] == {"choice": ["yes", "no"]}
    assert "structured_outputs" not in stub.requests[1]


async def collect(engine: OpenAIEngine) -> list[str | ChatReply]:
    return [piece async for piece in engine.stream(QUESTION, max_tokens=9)]


async def test_a_stream_yields_the_pieces_and_then_the_reply() -> None:
    stub = OpenAIStub([chunk("Pa"), chunk("ris"), chunk("", "stop"), USAGE_CHUNK, b"data: [DONE]\n\n"])
    async with serving(stub) as url:
        pieces = await collect(engine_at(url, thoughts="outside"))
    assert pieces == ["Pa", "ris", ChatReply("Paris", "stub-model", 5, 2, "stop")]
    assert stub.requests[0]["stream_options"] == {"include_usage": True}


async def test_with_auto_the_first_stream_is_held_back_until_one_reply_shows_where_replies_start() -> None:
    stub = OpenAIStub([chunk("a thought"), chunk("</think>"), chunk("Paris"), chunk("", "stop"), b"data: [DONE]\n\n"])
    async with serving(stub) as url:
        *pieces, reply = await collect(engine_at(url))
    assert (pieces, reply) == (["Paris"], ChatReply("Paris", "stub-model", 0, 0, "stop"))


async def test_a_thought_that_no_reply_before_had_may_be_streamed_once_and_is_never_in_the_reply(caplog) -> None:
    end = [chunk("", "stop"), b"data: [DONE]\n\n"]
    plain: list[bytes | None] = [chunk("Rome"), *end]
    thinking: list[bytes | None] = [chunk("Hm. "), chunk("</think>"), chunk("Paris"), *end]
    async with serving(OpenAIStub(plain, thinking, thinking)) as url:
        engine = engine_at(url)
        first, second, third = [await collect(engine) for _ in range(3)]
    assert first[:-1] == ["Rome"]  # replies begin outside, as far as is known now
    assert second[:-1] == ["Hm.", "Paris"]
    assert third[:-1] == ["Paris"]
    replies = [piece for pieces in (first, second, third) for piece in pieces if isinstance(piece, ChatReply)]
    assert [reply.text for reply in replies] == ["Rome", "Paris", "Paris"]
    assert [record.message for record in caplog.records if "set engine.thoughts: inside" in record.message]


async def test_a_stream_is_retried_until_it_starts() -> None:
    stub = OpenAIStub(503, [chunk("Paris"), chunk("", "stop"), USAGE_CHUNK, b"data: [DONE]\n\n"])
    async with serving(stub) as url:
        assert (await collect(engine_at(url)))[0] == "Paris"


@pytest.mark.parametrize(
    "step",
    [
        [chunk("Pa"), None],
        [chunk("Pa"), b"data: [DONE]\n\n"],
        [b"data: [DONE]\n\n"],
        [b"data: {broken\n\n"],
        [b'data: {"error": {"message": "engine died"}}\n\n'],
        [chunk("Pa"), b'data: {"error": {"message": "engine died"}}\n\n'],
    ],
)
async def test_a_stream_that_breaks_off_is_an_error_and_no_reply(step: list[bytes | None]) -> None:
    async with serving(OpenAIStub(step)) as url:
        pieces: list[str | ChatReply] = []
        with pytest.raises(Unavailable):
            async for piece in engine_at(url).stream(QUESTION, max_tokens=9):
                pieces.append(piece)
    assert not any(isinstance(piece, ChatReply) for piece in pieces)
