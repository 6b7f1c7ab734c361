"""One answer is one trace across all processes, and no trace carries questions, answers or passages."""

import time

import pytest

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from tests.fakes.otlp_collector import SeenSpan
from tests.integration.observed.conftest import Installation

pytestmark = pytest.mark.slow

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SEARCH = "searchrl.contracts.v1.Retriever/Search"
COMPLETE, CHAT = "POST /v1/completions", "POST /v1/chat/completions"
CLOCK_NANOSECONDS = 2_000_000  # tolerance when times of two processes are compared


def spans_of(installation: Installation, trace_id: str, last: str) -> list[SeenSpan]:
    """The spans of a trace, once the generator's ``last`` has arrived and half a second brought no new one."""
    seen: list[SeenSpan] = []
    end = time.monotonic() + 30
    while time.monotonic() < end:
        now = installation.collector.spans(trace_id)
        if len(now) == len(seen) and any(span.name == last and span.service == "searchrl-generator" for span in now):
            return now
        seen = now
        time.sleep(0.5)
    raise AssertionError(f"only {[span.name for span in seen]}")


def edges(spans: list[SeenSpan]) -> set[tuple[str, str]]:
    """The (parent, child) pairs, each as ``service kind name``."""
    known = {span.span_id: span for span in spans}
    return {(text(known[span.parent_id]), text(span)) for span in spans if span.parent_id in known}


def text(span: SeenSpan) -> str:
    return f"{span.service.removeprefix('searchrl-')} {span.kind} {span.name}"


@pytest.fixture(scope="module")
def answered(installation: Installation) -> list[SeenSpan]:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "trace-me"}
    assert "event: final" in installation.ask(headers)
    return spans_of(installation, TRACE, "POST /v1/answer")


def test_an_answer_is_one_trace_through_retriever_searcher_and_engine(answered: list[SeenSpan]) -> None:
    front = "generator server POST /v1/answer"
    assert edges(answered) >= {
        (front, "generator internal answer"),
        ("generator internal answer", f"generator client {SEARCH}"),
        (f"generator client {SEARCH}", f"retriever server {SEARCH}"),
        (f"retriever server {SEARCH}", "retriever internal rank"),
        (f"retriever server {SEARCH}", "retriever internal fetch"),
        ("generator internal answer", f"generator client {COMPLETE}"),
        (f"generator client {COMPLETE}", f"policy-server server {COMPLETE}"),
        ("generator internal answer", "generator internal generate"),
        ("generator internal generate", f"generator client {CHAT}"),
        (f"generator client {CHAT}", f"engine server {CHAT}"),
    }
    (root,) = [span for span in answered if text(span) == front]
    assert root.parent_id == PARENT
    assert {span.service for span in answered} == {
        "searchrl-generator", "searchrl-retriever", "searchrl-policy-server", "searchrl-engine",
    }  # fmt: skip


def test_every_span_has_its_parent_the_request_id_and_its_place_in_time(answered: list[SeenSpan]) -> None:
    known = {span.span_id: span for span in answered}
    for span in answered:
        assert not span.is_error
        if span.service != "searchrl-engine":  # an engine may be any server and numbers its requests itself
            assert span.attributes["searchrl.request_id"] == "trace-me"
        if span.parent_id == PARENT:
            continue
        parent = known[span.parent_id]
        assert parent.start - CLOCK_NANOSECONDS <= span.start <= span.end
        # a server's span may end after its caller has the answer; within a process, a child ends before its parent
        inner = span.end if span.service == parent.service else span.start
        assert inner <= parent.end + CLOCK_NANOSECONDS


def test_spans_say_what_was_done(answered: list[SeenSpan]) -> None:
    by_text = {text(span): span.attributes for span in answered}
    assert by_text["generator server POST /v1/answer"]["http.response.status_code"] == "200"
    assert by_text["generator internal answer"]["searchrl.method"] == "s3"
    assert int(by_text["generator client " + CHAT]["gen_ai.usage.input_tokens"]) > 0
    assert by_text["generator client " + CHAT]["searchrl.engine"] == "generator"
    assert by_text["retriever server " + SEARCH]["rpc.method"] == "Search"


async def test_an_answer_and_a_verdict_over_grpc_are_traced_too(installation: Installation) -> None:
    row = installation.questions[1]
    question = Question(row["id"], row["question"], tuple(row["golden_answers"]), filters=row["filters"])
    before = {span.trace_id for span in installation.collector.spans()}
    async with GeneratorClient(installation.grpc["generator"]) as client:
        async for _ in client.answer(question, "rag"):
            pass
        verdict = await client.judge(question.text, "not what was asked for", question.golden_answers)
    assert verdict.decided_by == "judge"
    wanted = {"searchrl.contracts.v1.Generator/Answer": SEARCH, "searchrl.contracts.v1.Generator/Judge": CHAT}
    for name, reached in wanted.items():
        trace = new_trace(installation, name, before)
        spans = spans_of(installation, trace, name)
        (root,) = [span for span in spans if span.name == name and span.kind == "server"]
        assert root.parent_id == ""
        assert any(span.name == reached and span.kind == "server" for span in spans)
    judged = new_trace(installation, "searchrl.contracts.v1.Generator/Judge", before)
    assert ("generator internal judge", f"generator client {CHAT}") in edges(installation.collector.spans(judged))


def new_trace(installation: Installation, name: str, before: set[str]) -> str:
    """The id of a new trace whose root is a server span ``name``; the training job's calls have a parent."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for span in installation.collector.spans():
            if span.name == name and span.kind == "server" and not span.parent_id and span.trace_id not in before:
                return span.trace_id
        time.sleep(0.1)
    raise AssertionError(f"no trace begins with {name}")


def test_training_and_evaluation_are_traced(installation: Installation) -> None:
    assert installation.client.post(
        f"{installation.http['evaluator']}/v1/runs", json=evaluation(installation)
    ).is_success
    wanted = {
        ("evaluator internal episode", "evaluator client searchrl.contracts.v1.Generator/Answer"),
        ("trainer internal rollout", "trainer client searchrl.contracts.v1.Generator/AnswerFromContext"),
    }
    end = time.monotonic() + 60
    while not edges(installation.collector.spans()) >= wanted:
        assert time.monotonic() < end, wanted - edges(installation.collector.spans())
        time.sleep(0.5)


def test_no_trace_carries_questions_answers_or_passages(installation: Installation, answered: list[SeenSpan]) -> None:
    sent = b"".join(installation.collector.payloads).lower()
    assert b"answer" in sent
    for row in installation.questions:
        assert row["question"].lower().encode() not in sent
        for answer in row["golden_answers"]:
            assert answer.lower().encode() not in sent
    for passage in installation.passages:
        for sentence in passage.split(". "):
            assert sentence.lower().encode() not in sent


def evaluation(installation: Installation) -> dict[str, object]:
    """The request for a run of two methods over all questions."""
    methods = [{"method": "rag"}, {"method": "s3"}]
    return {"run_id": "observed", "questions": str(installation.questions_file), "methods": methods}
