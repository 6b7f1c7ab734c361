"""Both transports of the generator, over real sockets, with engines and retrievers that fail on purpose."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from searchrl.clients.generator_client import GeneratorClient
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1.generator_pb2_grpc import GeneratorStub
from searchrl.domain.question import Question
from searchrl.errors import DeadlineExceeded, InvalidRequest, Unavailable
from searchrl.platform.retry import ONE_ATTEMPT
from searchrl.wire.record_codec import passage_to_wire, question_to_wire
from services.generator.engines.base import ChatEngine
from services.generator.engines.reader import ReaderEngine
from services.generator.http_routes import MIRRORS
from services.generator.methods.direct import DirectMethod
from services.generator.methods.rag import RagMethod
from services.generator.methods.title_heuristic import TitleHeuristicMethod
from services.generator.settings import GeneratorSettings
from services.generator.wiring import service_spec
from tests.contract.harness import BothTransports, running
from tests.fakes.generator_parts import PASSAGES, PassageStore, answerer_of, parts_of
from tests.fakes.scripted_engine import FOREVER, ScriptedEngine

ANSWER, FROM_CONTEXT, JUDGE, METHODS = MIRRORS
QUESTION = Question("q", "What is the director of Amber Falcon?", filters={})


@asynccontextmanager
async def serving_generator(
    engine: ChatEngine, store: PassageStore | None = None, **limits: Any
) -> AsyncIterator[BothTransports]:
    answerer = answerer_of(engine)
    store = store or PassageStore(PASSAGES)
    methods = [DirectMethod(answerer), RagMethod(store, answerer, 2), TitleHeuristicMethod(store, answerer, 2)]
    parts = parts_of(engine, methods, **limits)
    settings = GeneratorSettings()
    spec = service_spec(parts, settings)
    async with running(spec.build_grpc_server(), spec.build_http_app(), parts.health) as both:
        yield both


def untimed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for message in messages:
        message.get("final", {}).pop("seconds", None)
    return messages


def answer_request(method: str = "rag", **fields: Any) -> pb.AnswerRequest:
    return pb.AnswerRequest(question=question_to_wire(QUESTION), method=method, **fields)


@pytest.mark.parametrize("method", ["direct", "rag", "title_heuristic"])
async def test_both_transports_stream_the_same_steps(method: str) -> None:
    async with serving_generator(ReaderEngine()) as both:
        over_grpc = await both.over_grpc(GeneratorStub, "Answer", answer_request(method))
        over_http = await both.over_http(ANSWER, answer_request(method))
    assert untimed(over_grpc.messages) == untimed(over_http.messages)
    final = over_grpc.messages[-1]["final"]
    assert set(final.get("citations", [])) == {document["id"] for document in final.get("documents", [])}
    assert final["answer"] == ("unknown" if method == "direct" else "Jon Reed")


async def test_every_route_names_the_documents_that_the_token_budget_cut() -> None:
    long = replace(PASSAGES[0], text=PASSAGES[0].text + " and more" * 1000)  # over the 1000 words of the budget
    store = PassageStore([long, PASSAGES[1]])
    async with serving_generator(ReaderEngine(), store) as both, GeneratorClient(both.grpc_target) as client:
        over_grpc = await both.over_grpc(GeneratorStub, "Answer", answer_request())
        over_http = await both.over_http(ANSWER, answer_request())
        given = await client.answer_from_context(QUESTION.text, [long, PASSAGES[1]])
        request = pb.AnswerFromContextRequest(question=QUESTION.text, passages=[passage_to_wire(long)])
        given_over_http = await both.over_http(FROM_CONTEXT, request)
    final = over_grpc.messages[-1]["final"]
    assert untimed(over_grpc.messages) == untimed(over_http.messages)
    assert (final["cut"], final.get("left_out", []), final["finish_reason"]) == (["film"], [], "stop")
    assert (given.cut, given.left_out, given.finish_reason) == (("film",), (), "stop")
    assert given_over_http.messages[0]["cut"] == ["film"]


async def test_both_transports_answer_judge_and_list_alike() -> None:
    requests = {
        FROM_CONTEXT: pb.AnswerFromContextRequest(question=QUESTION.text),
        JUDGE: pb.JudgeRequest(question="Who?", answer="Mia", golden_answers=["Jon Reed"]),
        METHODS: pb.ListMethodsRequest(),
    }
    async with serving_generator(ReaderEngine()) as both:
        # The verdict is cached from now on, so that a repetition costs no tokens.
        await both.over_grpc(GeneratorStub, JUDGE.method, requests[JUDGE])
        for mirror, request in requests.items():
            over_grpc = await both.over_grpc(GeneratorStub, mirror.method, request)
            assert over_grpc == await both.over_http(mirror, request)
            assert not over_grpc.error


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (answer_request("unknown"), "invalid"),
        (answer_request(top_k=0), "invalid"),
        (answer_request(temperature=9.0), "invalid"),
        (pb.AnswerRequest(method="rag"), "invalid"),
    ],
)
async def test_both_transports_refuse_alike(request_: pb.AnswerRequest, kind: str) -> None:
    async with serving_generator(ReaderEngine()) as both:
        over_grpc = await both.over_grpc(GeneratorStub, "Answer", request_)
        over_http = await both.over_http(ANSWER, request_)
    assert over_grpc.error == over_http.error == kind
    assert over_grpc.message == over_http.message
    assert both.http_status == 400


class VanishingRetriever(PassageStore):
    """Answers the first call only."""

    async def search(self, queries, top_k, filters):  # type: ignore[no-untyped-def]
        if self.calls:
            raise Unavailable("retriever gone")
        return await super().search(queries, top_k, filters)


@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_a_retriever_that_fails_halfway_ends_the_stream_with_an_error(transport: str) -> None:
    async with serving_generator(ReaderEngine(), VanishingRetriever(PASSAGES)) as both:
        request = answer_request("title_heuristic")
        if transport == "grpc":
            got = await both.over_grpc(GeneratorStub, "Answer", request)
        else:
            got = await both.over_http(ANSWER, request)
    assert got.error == "unavailable"
    assert "retriever gone" in got.message
    assert [next(iter(message)) for message in got.messages] == ["documents", "query"]  # the steps before, no final


@pytest.mark.parametrize("failure", [Unavailable("engine gone"), RuntimeError("a bug with a secret in it")])
async def test_an_engine_failure_is_an_error_on_every_call(failure: Exception) -> None:
    async with serving_generator(ScriptedEngine(failure)) as both:
        calls = {
            FROM_CONTEXT: pb.AnswerFromContextRequest(question="Who?"),
            JUDGE: pb.JudgeRequest(question="Who?", answer="Mia", golden_answers=["Jon Reed"]),
            ANSWER: answer_request("direct"),
        }
        for mirror, request in calls.items():
            over_grpc = await both.over_grpc(GeneratorStub, mirror.method, request)
            over_http = await both.over_http(mirror, request)
            expected = "unavailable" if isinstance(failure, Unavailable) else "internal"
            assert over_grpc.error == over_http.error == expected
            assert "secret" not in over_grpc.message + over_http.message


async def test_a_hanging_engine_is_cut_off_at_the_callers_deadline_and_released() -> None:
    engine = ScriptedEngine(FOREVER)
    async with serving_generator(engine, max_generations=1) as both:
        client = GeneratorClient(both.grpc_target, timeout_seconds=1.5, retries=ONE_ATTEMPT)
        with pytest.raises(DeadlineExceeded):
            await client.answer_from_context("Who?", ())
        await asyncio.wait_for(engine.cancelled.wait(), 5)
        await client.close()
        async with httpx.AsyncClient(trust_env=False) as http:
            late = await http.post(
                f"{both.http_url}/v1/answer_from_context",
                json={"question": "Who?"},
                headers={"x-request-timeout": "1"},
            )
    assert late.status_code == 504  # and not 429: the first call's slot is free again


async def test_the_work_stops_if_a_grpc_caller_disconnects() -> None:
    engine = ScriptedEngine(FOREVER)
    async with serving_generator(engine) as both, GeneratorClient(both.grpc_target) as client:
        events = client.answer(QUESTION, "rag")
        assert (await anext(events)).WhichOneof("event") == "documents"
        await engine.waiting.wait()
        await events.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(engine.cancelled.wait(), 5)


async def test_the_work_stops_if_a_rest_client_disconnects() -> None:
    engine = ScriptedEngine(FOREVER)
    body = {"question": {"id": "q", "text": "Who?"}, "method": "rag"}
    async with serving_generator(engine) as both:
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("POST", f"{both.http_url}/v1/answer", json=body) as response,
        ):
            lines = response.aiter_lines()
            assert await anext(lines) == "event: documents"
            await engine.waiting.wait()
        await asyncio.wait_for(engine.cancelled.wait(), 5)


async def test_an_answer_without_a_searcher_has_no_trajectory_and_the_client_raises_errors_by_kind() -> None:
    async with serving_generator(ReaderEngine()) as both, GeneratorClient(both.grpc_target) as client:
        assert await client.list_methods() == ["direct", "rag", "title_heuristic"]
        events = [event async for event in client.answer(QUESTION, "rag", top_k=1, with_trajectory=True)]
        assert not events[-1].final.HasField("trajectory")  # naive RAG has no trajectory
        with pytest.raises(InvalidRequest):
            await client.judge("Who?", "Mia", [])
