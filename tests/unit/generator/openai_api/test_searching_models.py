"""Chat completions of ``searchrl/...`` models: the fields of a request that are honored and those that are refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from searchrl.agent.profile import SearcherProfile
from services.generator.engines.base import ChatMessage, ChatReply
from services.generator.methods.direct import DirectMethod
from services.generator.methods.s3 import SEARCH_R1, SearcherRun
from services.generator.methods.search_r1 import SearchR1Method
from services.generator.settings import GeneratorSettings
from services.generator.wiring import service_spec
from tests.contract.harness import running
from tests.fakes.generator_parts import PassageStore, answerer_of, parts_of
from tests.fakes.scripted_engine import ScriptedEngine
from tests.fakes.scripted_policy import CharacterTokenizer, ScriptedPolicy


class CutEngine(ScriptedEngine):
    """An engine whose replies are cut by the token limit."""

    async def chat(self, *arguments: Any, **options: Any) -> ChatReply:
        reply = await super().chat(*arguments, **options)
        return ChatReply(reply.text, reply.model, reply.prompt_tokens, reply.completion_tokens, "length")


@asynccontextmanager
async def served(engine: ScriptedEngine) -> AsyncIterator[httpx.AsyncClient]:
    tokenizer = CharacterTokenizer()
    run = SearcherRun(ScriptedPolicy([], tokenizer), PassageStore(()), tokenizer, SearcherProfile(SEARCH_R1))
    methods = [DirectMethod(answerer_of(engine)), SearchR1Method(run)]
    parts = parts_of(engine, methods)
    spec = service_spec(parts, GeneratorSettings())
    async with (
        running(spec.build_grpc_server(), spec.build_http_app(), parts.health) as both,
        httpx.AsyncClient(trust_env=False, base_url=both.http_url) as client,
    ):
        yield client


def asking(**fields: Any) -> dict[str, Any]:
    return {"model": "searchrl/direct", "messages": [{"role": "user", "content": "Who?"}], **fields}


async def test_system_text_and_earlier_turns_reach_the_generator() -> None:
    engine = ScriptedEngine("Rome")
    turns = [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Salut"},
        {"role": "user", "content": "Who?"},
    ]
    async with served(engine) as client:
        response = await client.post("/v1/chat/completions", json=asking(messages=turns, max_tokens=7, temperature=0.5))
    assert response.status_code == 200
    messages, max_tokens, _ = engine.calls[0]
    assert messages[0].content.endswith("\n\nAnswer in French.")
    assert messages[1:] == (
        ChatMessage("user", "Hello"),
        ChatMessage("assistant", "Salut"),
        ChatMessage("user", "Who?"),
    )
    assert max_tokens == 7
    provenance = response.json()["searchrl"]["provenance"]
    assert (provenance["max_answer_tokens"], provenance["temperature"]) == (7, 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_p", 0.5),
        ("stop", ["\n"]),
        ("n", 2),
        ("presence_penalty", 1),
        ("a_field_of_tomorrow", 1),
    ],
)
async def test_an_unsupported_field_is_refused_by_name(field: str, value: Any) -> None:
    async with served(ScriptedEngine("Rome")) as client:
        response = await client.post("/v1/chat/completions", json=asking(**{field: value}))
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{field}: ")


async def test_values_without_effect_are_accepted() -> None:
    harmless = {"tools": [], "n": 1, "top_p": 1.0, "stop": None, "user": "u", "logprobs": False, "metadata": {"a": "b"}}
    async with served(ScriptedEngine("Rome")) as client:
        response = await client.post("/v1/chat/completions", json=asking(**harmless))
    assert response.status_code == 200


async def test_a_model_that_writes_its_own_answer_refuses_options_of_the_generator() -> None:
    async with served(ScriptedEngine("Rome")) as client:
        response = await client.post("/v1/chat/completions", json=asking(model="searchrl/search_r1", max_tokens=7))
    assert response.status_code == 400
    assert "search_r1 writes the answer with the searcher" in response.json()["error"]["message"]


async def test_a_truncated_answer_is_marked_on_every_route() -> None:
    async with served(CutEngine("Rome is")) as client:
        whole = await client.post("/v1/chat/completions", json=asking())
        stream = await client.post("/v1/chat/completions", json=asking(stream=True))
        answer = await client.post("/v1/answer", json={"question": {"text": "Who?"}, "method": "direct"})
        context = await client.post("/v1/answer_from_context", json={"question": "Who?"})
    assert whole.json()["choices"][0]["finish_reason"] == "length"
    assert '"finish_reason":"length"' in stream.text
    assert '"finish_reason":"length"' in answer.text
    assert context.json()["finish_reason"] == "length"
