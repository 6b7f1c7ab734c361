"""Tracing: no cost while it is off; parents, kinds, failures and headers of spans; their export."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1 import retriever_pb2_grpc as rpc
from searchrl.errors import ConfigurationError, InvalidRequest, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.request_context import request
from searchrl.platform.retry import ONE_ATTEMPT
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.telemetry import tracing
from searchrl.platform.telemetry.trace_export import set_up_tracing
from tests.fakes.otlp_collector import running_collector

ROOT = Path(__file__).parents[4]
SEARCH = "searchrl.contracts.v1.Retriever/Search"


@pytest.fixture
def kept() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.set_provider(provider)
    yield exporter
    tracing.set_provider(None)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_tracing_that_is_off_is_one_shared_object_and_does_not_import_the_sdk() -> None:
    program = (
        "import sys\n"
        "from searchrl.platform.server import grpc_server, http_app, server_runner\n"
        "from searchrl.platform.telemetry import tracing\n"
        "from searchrl.clients import channel, remote_policy\n"
        "with tracing.span('a') as one, tracing.span('b') as two: assert one is two\n"
        "assert tracing.trace_headers() == () and tracing.trace_exemplar() is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_span_inside_a_span_is_its_child_and_carries_the_request_id(kept: InMemorySpanExporter) -> None:
    with request("r-1", None), tracing.span("outer"), tracing.span("inner", {"n": 3}) as inner:
        inner.set_attributes({"m": True})
        assert tracing.trace_id()
    spans = by_name(kept)
    assert spans["inner"].parent and spans["inner"].parent == spans["outer"].context
    assert dict(spans["inner"].attributes or {}) == {"n": 3, "m": True, "searchrl.request_id": "r-1"}
    assert spans["outer"].parent is None
    assert tracing.trace_id() == ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [(Unavailable("secret words"), "unavailable"), (ValueError("secret words"), "ValueError")],
)
def test_a_failure_is_recorded_by_its_kind_only(kept: InMemorySpanExporter, error: Exception, kind: str) -> None:
    with pytest.raises(type(error)), tracing.span("work"):
        raise error
    (span,) = kept.get_finished_spans()
    assert not span.status.is_ok and dict(span.attributes or {}) == {"error.type": kind}
    assert "secret" not in span.to_json()


async def test_a_generator_that_another_task_closes_leaves_its_context_unchanged(kept: InMemorySpanExporter) -> None:
    async def numbers() -> AsyncIterator[int]:
        with tracing.span("numbers"):
            yield 1
            yield 2

    generator = numbers()
    assert await anext(generator) == 1
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    (span,) = kept.get_finished_spans()
    assert span.status.is_unset


async def test_a_grpc_call_is_a_client_span_with_a_server_span_below(kept: InMemorySpanExporter) -> None:
    class Servicer(rpc.RetrieverServicer):
        async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
            if not request.queries[0]:
                raise InvalidRequest("no query")
            return pb.SearchResponse(queries=[pb.QueryResults()])

    server = build_grpc_server(
        lambda server: rpc.add_RetrieverServicer_to_server(Servicer(), server),
        full_name="searchrl.contracts.v1.Retriever",
        keys=KeyRing(),
        health=Health(),
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with RetrieverClient(f"127.0.0.1:{port}", retries=ONE_ATTEMPT) as client:
        with tracing.span("caller"):
            await client.search(["q"], 3, {})
        with pytest.raises(InvalidRequest):
            await client.search([""], 3, {})
    await server.stop(None)
    good, bad = [span for span in kept.get_finished_spans() if span.kind.name == "CLIENT"]
    served = {
        span.parent.span_id: span for span in kept.get_finished_spans() if span.kind.name == "SERVER" and span.parent
    }
    assert good.name == SEARCH and good.parent and good.parent == by_name(kept)["caller"].context
    assert good.context and bad.context
    assert served[good.context.span_id].name == SEARCH
    assert (served[bad.context.span_id].attributes or {})["error.type"] == "invalid"
    assert (bad.attributes or {})["error.type"] == "invalid"


async def test_an_http_request_is_a_server_span_named_by_its_route(kept: InMemorySpanExporter) -> None:
    router = APIRouter()

    @router.get("/things/{name}")
    async def thing(name: str) -> dict[str, str]:
        return {"trace": tracing.trace_id()}

    registry = CollectorRegistry()
    app = build_http_app("SearchRL example", [router], keys=KeyRing(), health=Health(), registry=registry)
    header = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        assert (await client.get("/things/secret", headers=header)).json() == {
            "trace": "0af7651916cd43dd8448eb211c80319c"
        }
        await client.get("/livez", headers=header)
        metrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        plain = await client.get("/metrics")
    (span,) = kept.get_finished_spans()
    assert span.name == "GET /things/{name}" and "secret" not in span.to_json()
    assert span.parent and f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert '# {trace_id="0af7651916cd43dd8448eb211c80319c"}' in metrics.text and metrics.text.endswith("# EOF\n")
    assert "trace_id" not in plain.text


def test_without_an_endpoint_tracing_stays_off() -> None:
    set_up_tracing("example")
    assert not tracing.is_on()


@pytest.mark.parametrize("switch", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_opentelemetrys_own_switches_win(monkeypatch: pytest.MonkeyPatch, switch: tuple[str, str]) -> None:
    monkeypatch.setenv(*switch)
    set_up_tracing("example", "http://127.0.0.1:4318")
    assert not tracing.is_on()


def test_an_unknown_protocol_and_a_missing_extra_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ConfigurationError, match=r"http/json.*known: http/protobuf, grpc"):
        set_up_tracing("example", "http://127.0.0.1:4318")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigurationError, match=r"searchrl\[tracing\]"):
        set_up_tracing("example", "http://127.0.0.1:4318")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_arrive_at_the_collector_over_both_protocols(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    with running_collector() as collector:
        set_up_tracing("example", collector.http if protocol != "grpc" else collector.grpc)
        with tracing.span("work"):
            pass
        tracing.shut_down_tracing()
        assert [(span.service, span.name) for span in collector.spans()] == [("searchrl-example", "work")]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_unavailable_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    set_up_tracing("example", "http://127.0.0.1:9")
    with tracing.span("work"):
        pass
    started = time.monotonic()
    tracing.shut_down_tracing()
    assert time.monotonic() - started < 6
    assert not tracing.is_on()
