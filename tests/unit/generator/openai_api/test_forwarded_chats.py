"""The real ``openai`` client with the engine's own model: requests, streams and refusals of the engine's server."""

import json

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.metrics import GeneratorMetrics
from tests.fakes.openai_stub import OK, OpenAIStub, chunk, serving
from tests.fakes.scripted_engine import ScriptedEngine
from tests.unit.generator.openai_api.conftest import (
    ask,
    run_generator,
)


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
