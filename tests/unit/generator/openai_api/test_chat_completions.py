"""The real ``openai`` client against the generator's OpenAI routes, over a real HTTP server."""

from typing import Any

import httpx
import openai
import pytest

from tests.unit.generator.openai_api.conftest import BIRTHPLACE, DIRECTOR, RunningGenerator, ask


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
