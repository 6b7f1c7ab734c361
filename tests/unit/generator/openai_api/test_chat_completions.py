"""The real ``openai`` client against the generator's OpenAI routes, over a real HTTP server."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import Limits
from searchrl.errors import Unavailable
from services.generator.engines.base import ChatEngine
from services.generator.engines.reader import ReaderEngine
from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.methods.base import AnsweringMethod
from services.generator.methods.direct import DirectMethod
from services.generator.methods.rag import RagMethod
from services.generator.methods.s3 import S3Method, SearcherRun
from services.generator.metrics import GeneratorMetrics
from services.generator.settings import GeneratorSettings
from services.generator.wiring import build_grpc_server, build_http_app
from tests.contract.harness import running
from tests.fakes.generator_parts import PASSAGES, PassageStore, answerer_of, parts_of
from tests.fakes.openai_stub import OK, OpenAIStub, chunk, serving
from tests.fakes.scripted_engine import FOREVER, ScriptedEngine
from tests.fakes.scripted_policy import CharacterTokenizer, ScriptedPolicy

DIRECTOR = "What is the director of Amber Falcon?"
BIRTHPLACE = "What is the birthplace of the director of Amber Falcon?"
SEARCH = (
    "<important_info>[1]</important_info><search_complete>False</search_complete>"
    '<query>{"query": "Jon Reed birthplace"}</query>'
)
FINISH = "<important_info>[1]</important_info><search_complete>True</search_complete>"


@dataclass(frozen=True, slots=True)
class RunningGenerator:
    """A running HTTP server of the generator."""

    url: str

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


def methods_with(engine: ChatEngine, store: PassageStore) -> list[AnsweringMethod]:
    tokenizer = CharacterTokenizer()
    profile = SearcherProfile(template="Find: {question} {documents}", limits=Limits(max_searches=3, top_k=2))
    run = SearcherRun(ScriptedPolicy([SEARCH, FINISH], tokenizer), store, tokenizer, profile)
    answerer = answerer_of(engine)
    return [DirectMethod(answerer), RagMethod(store, answerer, 3), S3Method(run, answerer)]


@asynccontextmanager
async def run_generator(
    engine: ChatEngine,
    methods: Sequence[AnsweringMethod] = (),
    upstream: UpstreamApi | None = None,
    keys_file: Path | None = None,
    **limits: Any,
) -> AsyncIterator[RunningGenerator]:
    """Run the generator's servers over an engine and methods, without a real model."""
    parts = parts_of(engine, methods, upstream=upstream, **limits)
    settings = GeneratorSettings(auth_keys_file=keys_file)
    grpc_server, http_app = build_grpc_server(parts, settings), build_http_app(parts, settings)
    async with running(grpc_server, http_app, parts.health) as both:
        yield RunningGenerator(both.http_url)


@pytest.fixture
async def generator() -> AsyncIterator[RunningGenerator]:
    engine = ReaderEngine()
    async with run_generator(engine, methods_with(engine, PassageStore(PASSAGES))) as opened:
        yield opened


def ask(question: str) -> list[Any]:
    return [{"role": "system", "content": "ignored"}, {"role": "user", "content": question}]


async def test_the_engines_model_and_the_methods_are_listed(generator: RunningGenerator) -> None:
    async with generator.client() as client:
        models = [model.id async for model in client.models.list()]
    assert models == ["reader", "searchrl/direct", "searchrl/rag", "searchrl/s3"]


async def test_the_engine_answers_a_chat(generator: RunningGenerator) -> None:
    context = 'Doc 1 (Title: "Amber Falcon")\nAmber Falcon was directed by Jon Reed.\n\n'
    messages: list[Any] = [{"role": "system", "content": context}, {"role": "user", "content": DIRECTOR}]
    async with generator.client() as client:
        reply = await client.chat.completions.create(model="reader", messages=messages)
        stream = await client.chat.completions.create(
            model="reader", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [part async for part in stream]
    assert reply.choices[0].message.content == "Jon Reed"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert "".join(part.choices[0].delta.content or "" for part in chunks if part.choices) == "Jon Reed"
    assert [part.choices[0].finish_reason for part in chunks if part.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == reply.usage


async def test_content_in_parts_is_read(generator: RunningGenerator) -> None:
    parts: list[Any] = [{"type": "text", "text": "What is the director "}, {"type": "text", "text": "of Amber Falcon?"}]
    async with generator.client() as client:
        reply = await client.chat.completions.create(
            model="searchrl/rag", messages=[{"role": "user", "content": parts}]
        )
    assert reply.choices[0].message.content == "Jon Reed"


async def test_a_searching_model_answers_with_citations(generator: RunningGenerator) -> None:
    async with generator.client() as client:
        reply = await client.chat.completions.create(model="searchrl/s3", messages=ask(BIRTHPLACE))
    assert reply.choices[0].message.content == "Port Ellis"
    extra = (reply.model_extra or {})["searchrl"]
    assert extra["provenance"]["index_generations"] == ["g1"]
    assert extra["provenance"]["template_hash"]
    assert extra["citations"] == [document["id"] for document in extra["documents"]]
    assert {"film", "person"} <= set(extra["citations"])
    assert extra["searches"] == 1
    assert extra["stop_reason"] == "completed"
    assert reply.usage is not None
    searched = int(extra["searcher_prompt_tokens"]), int(extra["searcher_completion_tokens"])
    assert reply.usage.prompt_tokens > searched[0] > 0  # the searcher's calls and the generator's
    assert reply.usage.completion_tokens > searched[1] > 0


async def test_a_searching_model_streams_its_steps_and_its_text(generator: RunningGenerator) -> None:
    async with generator.client() as client:
        stream = await client.chat.completions.create(
            model="searchrl/s3", messages=ask(BIRTHPLACE), stream=True, stream_options={"include_usage": True}
        )
        chunks = [part async for part in stream]
    text = "".join(part.choices[0].delta.content or "" for part in chunks if part.choices)
    steps = [name for part in chunks for name in (part.model_extra or {}).get("searchrl", {})]
    assert text == "Port Ellis"
    assert steps[:4] == ["documents", "selection", "query", "documents"]
    last = next(part for part in reversed(chunks) if part.choices)
    assert last.choices[0].finish_reason == "stop"
    assert "person" in (last.model_extra or {})["searchrl"]["citations"]
    assert chunks[-1].usage is not None
    assert len({part.id for part in chunks}) == 1


async def test_the_field_searchrl_sets_how_to_search(generator: RunningGenerator) -> None:
    async with generator.client() as client:
        reply = await client.chat.completions.create(
            model="searchrl/rag", messages=ask(DIRECTOR), extra_body={"searchrl": {"top_k": 1}}
        )
        assert len((reply.model_extra or {})["searchrl"]["citations"]) == 1
        with pytest.raises(openai.BadRequestError, match="topk"):
            await client.chat.completions.create(
                model="searchrl/rag", messages=ask(DIRECTOR), extra_body={"searchrl": {"topk": 1}}
            )
        with pytest.raises(openai.BadRequestError, match="top_k: must be 1 to 50"):
            await client.chat.completions.create(
                model="searchrl/rag", messages=ask(DIRECTOR), extra_body={"searchrl": {"top_k": 1000}}
            )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["gpt-9", "searchrl/none"])
async def test_an_unknown_model_is_a_404_in_openais_form(generator: RunningGenerator, model: str, stream: bool) -> None:
    async with generator.client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model=model, messages=ask("x"), stream=stream)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "searchrl/s3" in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        {"model": "reader"},
        {"model": "reader", "messages": []},
        {"model": "reader", "messages": [{"role": "king", "content": "x"}]},
        {"model": "reader", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"model": "reader", "messages": [{"role": "user", "content": "x"}], "temperature": 3},
        {"model": "searchrl/rag", "messages": [{"role": "user", "content": " "}]},
        {"model": "searchrl/rag", "messages": [{"role": "user", "content": "x"}], "n": 2},
        {"model": "reader", "prompt": "x"},
    ],
)
async def test_a_bad_request_is_a_400_in_openais_form(generator: RunningGenerator, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(f"{generator.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


async def test_a_body_that_is_no_json_is_a_400(generator: RunningGenerator) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"content-type": "application/json"}
        response = await client.post(f"{generator.url}/v1/chat/completions", content=b"{", headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_the_reader_serves_chat_completions_only(generator: RunningGenerator) -> None:
    async with generator.client() as client:
        with pytest.raises(openai.BadRequestError, match="chat completions only"):
            await client.completions.create(model="reader", prompt="x")


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


def upstream_at(url: str, seconds: float = 5.0) -> UpstreamApi:
    metrics = GeneratorMetrics(CollectorRegistry()).engine("generator")
    settings = ChatEngineSettings(base_url=url, key=SecretStr("engine-key"), timeout_seconds=seconds)
    return UpstreamApi(settings, metrics, use_proxies=False)


async def test_every_field_is_forwarded_to_the_engines_server_and_its_bytes_are_returned() -> None:
    stub = OpenAIStub(OK)
    async with serving(stub) as url:
        upstream = upstream_at(url)
        async with run_generator(ScriptedEngine("x"), upstream=upstream) as generator, generator.client() as client:
            await client.chat.completions.create(
                model="scripted",
                messages=ask("x"),
                logprobs=True,
                tools=[{"type": "function", "function": {"name": "f"}}],
                extra_body={"return_token_ids": True, "searchrl": {"top_k": 1}},
            )
            await client.completions.create(model="scripted", prompt=[1, 2, 3], extra_body={"return_token_ids": True})
        await upstream.close()
    chat, text = stub.requests
    assert chat["return_token_ids"] is True
    assert chat["logprobs"] is True
    assert chat["tools"][0]["function"]["name"] == "f"
    assert "searchrl" not in chat
    assert text["prompt"] == [1, 2, 3]
    assert stub.paths == ["/v1/chat/completions", "/v1/completions"]
    assert stub.headers["authorization"] == "Bearer engine-key"


async def test_the_engines_stream_is_forwarded() -> None:
    events: list[bytes | None] = [chunk("Pa"), chunk("ris", "stop"), b"data: [DONE]\n\n"]
    async with serving(OpenAIStub(events)) as url:
        upstream = upstream_at(url)
        async with run_generator(ScriptedEngine("x"), upstream=upstream) as generator, httpx.AsyncClient() as client:
            body = {"model": "scripted", "messages": ask("x"), "stream": True}
            response = await client.post(f"{generator.url}/v1/chat/completions", json=body)
        await upstream.close()
    assert response.content == b"".join(event for event in events if event)
    assert response.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("step", "status"),
    [(400, 400), (413, 413), (422, 422), (500, 503), (502, 503), (429, 429), ("hang", 504)]
    # failures that the client did not cause: our key, our account, a proxy, the model and the address
    + [(status, 503) for status in (401, 402, 403, 404, 405, 407, 410)],
)
async def test_what_the_engines_server_refuses_or_fails_keeps_its_meaning(
    step: int | str, status: int, stream: bool
) -> None:
    async with serving(OpenAIStub(step)) as url:
        upstream = upstream_at(url, seconds=0.5 if step == "hang" else 30)
        async with run_generator(ScriptedEngine("x"), upstream=upstream) as generator, generator.client() as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="scripted", messages=ask("x"), stream=stream)
        await upstream.close()
    assert caught.value.status_code == status


async def test_an_engines_stream_that_breaks_is_an_error_event() -> None:
    async with serving(OpenAIStub([chunk("Pa"), None])) as url:
        upstream = upstream_at(url)
        async with run_generator(ScriptedEngine("x"), upstream=upstream) as generator, httpx.AsyncClient() as client:
            body = {"model": "scripted", "messages": ask("x"), "stream": True}
            response = await client.post(f"{generator.url}/v1/chat/completions", json=body)
        await upstream.close()
    last = response.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["kind"] == "unavailable"
