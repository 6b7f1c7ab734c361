"""Model servers that differ from OpenAI's, over real HTTP: what each refuses or returns, and how it is handled."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from searchrl.errors import PERMANENT_KINDS, InvalidRequest, ServiceError, Unavailable
from searchrl.platform.retry import ONE_ATTEMPT
from services.generator.engines.base import ChatMessage, ChatReply
from services.generator.engines.openai import OpenAIEngine
from services.generator.engines.request_form import MAX_FUTILE_CHANGES, NEUTRAL_SAMPLING, RequestForm
from services.generator.engines.settings import ChatEngineSettings
from services.generator.metrics import GeneratorMetrics
from tests.fakes.openai_stub import ModalLLM, OpenAIStub, chunk, serving, whole

QUESTION = (ChatMessage("system", "Be short."), ChatMessage("user", "Capital of Ystad?"))


@asynccontextmanager
async def engine_for(llm: OpenAIStub, **settings: Any) -> AsyncIterator[OpenAIEngine]:
    """An engine that talks to ``llm`` over real HTTP and tries each request once."""
    async with serving(llm) as url:
        chosen = ChatEngineSettings(kind="url", base_url=url, model="stub-model", **settings)
        metrics = GeneratorMetrics(CollectorRegistry()).engine("generator")
        engine = OpenAIEngine(chosen, metrics, retries=ONE_ATTEMPT, use_proxies=False)
        try:
            yield engine
        finally:
            await engine.close()


async def chat(engine: OpenAIEngine) -> ChatReply:
    return await engine.chat(QUESTION, max_tokens=128)


async def stream(engine: OpenAIEngine) -> tuple[str, ChatReply]:
    pieces = [piece async for piece in engine.stream(QUESTION, max_tokens=128)]
    assert isinstance(pieces[-1], ChatReply)
    return "".join(piece for piece in pieces if isinstance(piece, str)), pieces[-1]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "mode", ["gemma", "max_completion", "temp_unsupported", "stream_options", "reasoning_model", "think", "cut"]
)
async def test_a_server_that_accepts_another_form_answers_and_its_form_is_reused(mode: str, is_streamed: bool) -> None:
    llm = ModalLLM(mode)
    async with engine_for(llm) as engine:
        for _ in range(3):
            text, reply = await stream(engine) if is_streamed else ("Rome", await chat(engine))
            assert (text, reply.text) == ("Rome", "Rome")
            assert reply.finish_reason == ("length" if mode == "cut" else "stop")
    refused = len(llm.requests) - 3
    assert refused <= 2  # one per refused field, at the first request only


async def test_the_system_text_is_kept_for_a_model_without_a_system_role() -> None:
    llm = ModalLLM("gemma")
    async with engine_for(llm) as engine:
        await chat(engine)
    assert llm.asked[0]["messages"] == [{"role": "user", "content": "Be short.\n\nCapital of Ystad?"}]


async def test_the_probe_learns_the_form_before_the_first_question() -> None:
    llm = ModalLLM("reasoning_model")
    async with engine_for(llm) as engine:
        await engine.probe()
        assert engine.form == RequestForm(token_field="max_completion_tokens", has_temperature=False)
        before = len(llm.requests)
        await chat(engine)
    assert len(llm.requests) == before + 1


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("gemma", {"system_role": "send"}),
        ("max_completion", {"token_field": "max_tokens"}),
        ("temp_unsupported", {"temperature_field": "send"}),
    ],
)
async def test_an_explicit_setting_does_not_change(mode: str, settings: dict[str, Any]) -> None:
    llm = ModalLLM(mode)
    async with engine_for(llm, **settings) as engine:
        with pytest.raises(InvalidRequest, match="400"):
            await chat(engine)
    assert len(llm.requests) == 1


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("gemma", {"system_role": "fold"}),
        ("max_completion", {"token_field": "max_completion_tokens"}),
        ("temp_unsupported", {"temperature_field": "omit"}),
        ("stream_options", {"stream_options": "omit"}),
    ],
)
async def test_a_setting_avoids_the_first_refusal(mode: str, settings: dict[str, Any]) -> None:
    llm = ModalLLM(mode)
    async with engine_for(llm, **settings) as engine:
        await stream(engine)
    assert len(llm.requests) == 1


async def test_a_value_out_of_range_is_an_error_of_the_caller_and_changes_no_field() -> None:
    llm = ModalLLM("too_long")
    async with engine_for(llm) as engine:
        with pytest.raises(InvalidRequest, match="maximum context length is 512"):
            await chat(engine)
        assert engine.form == RequestForm()
    assert len(llm.requests) == 1


async def test_a_refusal_that_no_change_helps_is_not_retried_forever() -> None:
    body = b'{"error": {"message": "unknown parameter: temperature"}}'

    class Stubborn(ModalLLM):
        async def _answer(self, step: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": body})

    llm = Stubborn("")
    async with engine_for(llm) as engine:
        for _ in range(10):
            with pytest.raises(InvalidRequest, match="unknown parameter"):
                await chat(engine)
    assert len(llm.requests) == 10 + MAX_FUTILE_CHANGES


async def test_further_fields_and_template_variables_are_sent_and_override() -> None:
    llm = ModalLLM("plain")
    extra = {"extra_body": {"top_k": 7, "reasoning_effort": "low"}, "chat_template_kwargs": {"enable_thinking": False}}
    async with engine_for(llm, sampling_fields="send", **extra) as engine:
        await chat(engine)
    (body,) = llm.asked
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["reasoning_effort"] == "low"
    assert {name: body[name] for name in NEUTRAL_SAMPLING} == {**NEUTRAL_SAMPLING, "top_k": 7}


@pytest.mark.parametrize(("mode", "is_sent"), [("vllm", True), ("plain", False)])
async def test_neutral_sampling_values_are_sent_to_vllm_only(mode: str, is_sent: bool) -> None:
    llm = ModalLLM(mode)
    async with engine_for(llm) as engine:
        await engine.probe()
        await chat(engine)
    assert ("repetition_penalty" in llm.asked[-1]) is is_sent


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("null_content", "all 128 answer tokens of stub-model went into reasoning; raise max_answer_tokens"),
        ("think_cut", "all 20 answer tokens of stub-model went into reasoning"),
        ("reasoning_only", "reasoning only, without an answer"),
        ("tool_calls", "called a tool in place of an answer"),
        ("filtered", "the content filter of stub-model withheld the reply"),
        ("nothing", "the engine's reply is empty"),
        ("aborted", r"ended its reply itself \(abort\)"),
    ],
)
async def test_a_reply_without_an_answer_has_the_same_outcome_streamed_and_not(mode: str, sentence: str) -> None:
    async with engine_for(ModalLLM(mode)) as engine:
        with pytest.raises(ServiceError, match=sentence) as whole:
            await chat(engine)
        with pytest.raises(ServiceError, match=sentence) as streamed:
            await stream(engine)
    assert whole.value.kind == streamed.value.kind
    assert (whole.value.kind in PERMANENT_KINDS) is (mode not in ("nothing", "aborted"))


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("think", "Rome"),
        ("think_noopen", "Rome"),
        ("parts", "Rome"),
        ("refusal", "I cannot help with that."),
        ("cut", "Rome"),
    ],
)
async def test_an_answer_is_the_same_streamed_and_not_and_contains_no_thought(mode: str, answer: str) -> None:
    async with engine_for(ModalLLM(mode)) as engine:
        text, streamed = await stream(engine)
        assert await chat(engine) == streamed
        again, _ = await stream(engine)  # now it is known where replies begin
    assert (text, streamed.text, again) == (answer, answer, answer)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("end_turn", "stop"),
        ("eos_token", "stop"),
        ("STOP", "stop"),
    ],
)
async def test_finish_reasons_of_other_servers_become_openais(theirs: str, ours: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Rome"}, "finish_reason": theirs}
    async with engine_for(OpenAIStub(whole(choices=[choice]))) as engine:
        assert (await chat(engine)).finish_reason == ours
    async with engine_for(OpenAIStub([chunk("Rome", theirs), b"data: [DONE]\n\n"])) as engine:
        assert (await stream(engine))[1].finish_reason == ours


async def test_an_error_with_a_status_of_success_keeps_its_message() -> None:
    async with engine_for(OpenAIStub({"error": {"message": "upstream is overloaded", "code": 502}})) as engine:
        with pytest.raises(Unavailable, match="upstream is overloaded"):
            await chat(engine)
        with pytest.raises(Unavailable, match="upstream is overloaded"):
            await stream(engine)


async def test_a_thought_that_the_template_opened_and_the_limit_cut_is_no_answer() -> None:
    async with engine_for(OpenAIStub(CUT_THOUGHT), thoughts="inside") as engine:
        with pytest.raises(InvalidRequest, match="went into reasoning"):
            await chat(engine)


CUT_THOUGHT = {
    "model": "stub-model",
    "choices": [{"index": 0, "message": {"content": "Okay, the capital"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 128},
}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"error": {"message": "bad thing"}}', "400: bad thing"),
        (b'{"message": "bad thing", "request_id": "1"}', "400: bad thing"),
        (b'{"detail": [{"loc": ["body", "x"], "msg": "bad thing"}]}', "400: body.x: bad thing"),
        (b'{"error": "bad thing"}', "400: bad thing"),
        (b"<html>bad thing</html>", "400: <html>bad thing</html>"),
        (b"", "400: nothing"),
    ],
)
async def test_the_servers_message_is_kept(body: bytes, sentence: str) -> None:
    class Refusing(ModalLLM):
        async def _answer(self, step: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": body})

    async with engine_for(Refusing("")) as engine:
        for call in (chat, stream):
            with pytest.raises(InvalidRequest, match=sentence):
                await call(engine)


@pytest.mark.parametrize("mode", ["wrong_key", "no_model"])
async def test_a_misconfiguration_is_unavailable_to_callers_and_not_retried(mode: str) -> None:
    llm = ModalLLM(mode)
    async with engine_for(llm) as engine:
        with pytest.raises(Unavailable, match=r"refused the configured key|does not serve this model"):
            await chat(engine)
        with pytest.raises(Unavailable):
            await engine.probe()
    assert len([request for request in llm.requests if request]) == 2
