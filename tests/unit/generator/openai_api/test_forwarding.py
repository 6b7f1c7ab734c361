"""Requests for the engine's own model: what reaches its server and what comes back, compared byte by byte."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import orjson
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.engines.upstream_http import UpstreamHttp
from services.generator.metrics import GeneratorMetrics
from services.generator.settings import GeneratorSettings
from services.generator.wiring import service_spec
from tests.contract.harness import running
from tests.fakes.generator_parts import parts_of
from tests.fakes.openai_stub import OK, ModalLLM, OpenAIStub, chunk, serving
from tests.fakes.scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"
CONVERSATION = {
    "model": "scripted",
    "messages": [
        {"role": "function", "name": "old", "content": "x"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}], "cache_control": {"a": 1}},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}], "prefix": True},
        {"role": "tool", "tool_call_id": "1", "content": "sunny", "reasoning_content": "hm"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
    ],
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "n": 3,
    "temperature": 7,
    "a_field_of_tomorrow": {"deep": [1.5, None, "é"]},
}


@asynccontextmanager
async def gateway(llm: OpenAIStub, **times: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway in front of ``llm``."""
    async with serving(llm) as url:
        metrics = GeneratorMetrics(CollectorRegistry()).engine("generator")
        upstream = UpstreamApi(
            ChatEngineSettings(base_url=url, key=SecretStr("engine-key"), **times), metrics, use_proxies=False
        )
        parts, settings = parts_of(ScriptedEngine("x"), upstream=upstream), GeneratorSettings()
        spec = service_spec(parts, settings)
        async with (
            running(spec.build_grpc_server(), spec.build_http_app(), parts.health) as both,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            client.base_url = httpx.URL(both.http_url)
            yield client
        await upstream.close()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_body_reaches_the_server_unchanged(is_streamed: bool) -> None:
    llm = OpenAIStub([chunk("Paris", "stop")] if is_streamed else OK)
    body = orjson.dumps({**CONVERSATION, "stream": is_streamed}, option=orjson.OPT_INDENT_2)
    async with gateway(llm) as client:
        response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert llm.bodies == [body]
    assert llm.headers["accept-encoding"] == "identity"


async def test_only_the_field_searchrl_is_removed() -> None:
    llm = OpenAIStub(OK)
    async with gateway(llm) as client:
        await client.post(CHAT, json={**CONVERSATION, "seed": 2**70, "searchrl": {"top_k": 1}})
    assert llm.requests == [{**CONVERSATION, "seed": 2**70}]


async def test_a_body_that_only_one_parser_can_read_is_refused() -> None:
    # Within the depth that the parser of requests accepts, and beyond that of the standard library.
    nested = b"[" * 1000 + b"]" * 1000
    content = orjson.dumps({**CONVERSATION, "searchrl": {}, "x": 0}).replace(b'"x":0', b'"x":' + nested)
    async with gateway(OpenAIStub(OK)) as client:
        answer = await client.post(CHAT, content=content)
    assert answer.status_code == 400
    assert "nested too deep" in answer.json()["error"]["message"]


@pytest.mark.parametrize("broken", [[b'data: {"id":"x","choi', None], [b'data: {"id":"x","choi']])
@pytest.mark.parametrize("text", ["Pa", "[DONE]"])  # a text that only looks like the mark of the end
async def test_a_stream_that_breaks_inside_an_event_ends_with_an_event_of_its_own(
    broken: list[bytes | None], text: str
) -> None:
    async with gateway(OpenAIStub([chunk(text), *broken])) as client:
        response = await client.post(CHAT, json={"model": "scripted", "messages": [], "stream": True})
        first, last, end = response.content.split(b"\n\n")
        assert first + b"\n\n" == chunk(text)
        assert json.loads(last.removeprefix(b"data: "))["error"]["kind"] == "unavailable"
        assert end == b""
        sdk = openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="in the middle"):
            async for _ in await sdk.chat.completions.create(model="scripted", messages=[], stream=True):
                pass
        await sdk.close()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_server_that_sends_single_bytes_is_aborted_at_the_timeout(is_streamed: bool) -> None:
    class Dripping(OpenAIStub):
        async def _answer(self, step: Any, send: Any) -> None:
            kind = b"text/event-stream" if self.requests[-1].get("stream") else b"application/json"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            for byte in b'data: {"x": "' + b"x" * 10_000:
                await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
                await asyncio.sleep(0.02)

    async with gateway(Dripping({}), timeout_seconds=0.3) as client:
        response = await client.post(CHAT, json={"model": "scripted", "messages": [], "stream": is_streamed})
    assert response.status_code == 504  # the stream has no complete event yet, so its failure also has a status
    assert "did not answer in time" in response.text


async def test_an_endless_stream_ends_after_its_time() -> None:
    class Endless(OpenAIStub):
        async def _answer(self, step: Any, send: Any) -> None:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                await send({"type": "http.response.body", "body": chunk("x"), "more_body": True})
                await asyncio.sleep(0.01)

    async with gateway(Endless({}), stream_seconds=0.5) as client:
        response = await client.post(CHAT, json={"model": "scripted", "messages": [], "stream": True})
    assert '"kind":"deadline"' in response.text.strip().splitlines()[-1]


async def test_a_reply_over_the_size_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.generator.engines.upstream_http.MAX_REPLY_BYTES", 1000)
    async with gateway(OpenAIStub(b"x" * 2000)) as client:
        response = await client.post(CHAT, json={"model": "scripted", "messages": []})
    assert (response.status_code, response.json()["error"]["kind"]) == (503, "unavailable")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_refusal_of_the_services_key_is_no_error_of_the_client(is_streamed: bool) -> None:
    async with gateway(ModalLLM("wrong_key")) as client:
        response = await client.post(CHAT, json={"model": "scripted", "messages": [], "stream": is_streamed})
    assert response.status_code == 503
    assert "the engine refused the configured key" in response.json()["error"]["message"]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "content", "shown", "message"),
    [
        (400, b"<html><h1>Bad Request</h1></html>", 400, "Bad Request"),
        (422, b'{"detail": [{"loc": ["body", "n"], "msg": "too many"}]}', 400, "body.n: too many"),
        (400, b'{"object": "error", "message": "no tools", "code": 400}', 400, "no tools"),
        (400, b'{"error": "no tools"}', 400, "no tools"),
        (404, b"<html>nginx</html>", 503, "does not serve this model at this address"),
        (413, b"", 400, "answered 413"),
    ],
)
async def test_an_error_of_another_form_is_converted_to_openais(
    status: int, content: bytes, shown: int, message: str, is_streamed: bool
) -> None:
    class Refusing(OpenAIStub):
        async def _answer(self, step: Any, send: Any) -> None:
            headers = [(b"content-type", b"text/html")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})

    async with gateway(Refusing({})) as client:
        response = await client.post(CHAT, json={"model": "scripted", "messages": [], "stream": is_streamed})
    assert response.status_code == shown
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert message in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/v1/models/none", b"", 404),
        ("POST", "/v1/embeddings", b"{}", 404),
        ("POST", "/v1/responses", b"{}", 404),
        ("GET", "/v1/fine_tuning/jobs", b"", 404),
        ("POST", "/chat/completions", b"{}", 404),  # a base_url without /v1
        ("GET", "/", b"", 404),
        ("GET", CHAT, b"", 405),
        ("POST", CHAT, b'{"model": "scripted", "messages": "\\ud83d"}', 400),
        ("POST", CHAT, b'{"model": "\\ud83d"}', 400),
        ("POST", CHAT, b"[]", 400),
        ("POST", CHAT, b"{}", 400),
        ("POST", CHAT, b'{"model": "scripted", "stream": "yes"}', 400),
        ("POST", "/v1/completions", b"{", 400),
    ],
)
async def test_every_error_has_openais_shape(method: str, path: str, content: bytes, status: int) -> None:
    async with gateway(OpenAIStub(OK)) as client:
        response = await client.request(method, path, content=content)
    assert response.status_code == status
    assert {"message", "type", "param", "code"} <= response.json()["error"].keys()


async def test_a_deadline_that_passed_has_openais_shape() -> None:
    async with gateway(OpenAIStub("hang")) as client:
        body = {"model": "scripted", "messages": []}
        response = await client.post(CHAT, json=body, headers={"x-request-timeout": "0.2"})
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "server_error"


async def test_one_model_can_be_looked_up() -> None:
    async with gateway(OpenAIStub(OK)) as client:
        response = await client.get("/v1/models/scripted")
    assert response.json() == {"id": "scripted", "object": "model", "created": 0, "owned_by": "searchrl"}


async def test_headers_and_the_query_of_azure_are_sent() -> None:
    llm = OpenAIStub(OK)
    async with serving(llm) as url:
        http = UpstreamHttp(f"{url}/openai/deployments/x?api-version=1", headers={"Api-Key": "k"}, use_proxies=False)
        await http.post("/chat/completions", b"{}", asyncio.get_running_loop().time() + 60, {})
        await http.close()
    assert (llm.paths, llm.queries) == (["/openai/deployments/x/chat/completions"], ["api-version=1"])
    assert llm.headers["api-key"] == "k"
    assert "authorization" not in llm.headers
