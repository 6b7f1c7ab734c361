"""One answer is one trace, from the OpenAI route through retriever and searcher into vLLM."""

import base64

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

from tests.cluster.live.observed.conftest import QUESTION, Observed, payloads
from tests.cluster.live.releases import await_that
from tests.fakes.otlp_collector import OtlpCollector, SeenSpan

pytestmark = pytest.mark.timeout(600)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SEARCH = "searchrl.contracts.v1.Retriever/Search"
COMPLETE, CHAT = "POST /v1/completions", "POST /v1/chat/completions"
FRONT = "generator server POST /v1/answer"
EDGES = {
    (FRONT, "generator internal answer"),
    ("generator internal answer", f"generator client {SEARCH}"),
    (f"generator client {SEARCH}", f"retriever server {SEARCH}"),
    (f"retriever server {SEARCH}", "retriever internal rank"),
    ("generator internal answer", f"generator client {COMPLETE}"),
    (f"generator client {COMPLETE}", f"engine-searcher server {COMPLETE}"),
    ("generator internal generate", f"generator client {CHAT}"),
    (f"generator client {CHAT}", "engine-generator server llm_request"),
}


def spans(observed: Observed) -> list[SeenSpan]:
    """The spans of the test's trace that the collector has received."""
    collector = OtlpCollector()
    for payload in payloads(observed):
        collector.receive(pb.ExportTraceServiceRequest.FromString(base64.b64decode(payload)))
    return collector.spans(TRACE)


def text(span: SeenSpan) -> str:
    return f"{span.service.removeprefix('searchrl-')} {span.kind} {span.name}"


def edges(found: list[SeenSpan]) -> set[tuple[str, str]]:
    """The (parent, child) pairs of the trace."""
    known = {span.span_id: span for span in found}
    return {(text(known[span.parent_id]), text(span)) for span in found if span.parent_id in known}


def test_an_answer_is_one_trace_that_ends_in_vllm(observed_release: Observed) -> None:
    question = {"id": "q", "text": QUESTION, "filters": {"world": "w002"}}
    assert "event: final" in observed_release.ask("s3", question, traceparent=f"00-{TRACE}-{PARENT}-01")
    await_that(lambda: edges(spans(observed_release)) >= EDGES, 60, "the complete trace has arrived")
    found = spans(observed_release)
    (front,) = [span for span in found if text(span) == FRONT]
    assert front.parent_id == PARENT
    assert not [text(span) for span in found if span.is_error]
    (inside,) = [span for span in found if span.name == "llm_request"]
    assert int(inside.attributes["gen_ai.usage.completion_tokens"]) > 0
    sent = b"".join(base64.b64decode(payload) for payload in payloads(observed_release))
    assert QUESTION.encode() not in sent and b"Helga Tanaka" not in sent
