"""The generator's metrics of slots and streamed replies, and the traces of its engine."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from searchrl.errors import Unavailable
from searchrl.platform.retry import RetryPolicy
from searchrl.platform.telemetry import tracing
from services.generator.answer_service import Admission
from services.generator.engines.base import ChatMessage
from services.generator.engines.openai import OpenAIEngine
from services.generator.engines.settings import ChatEngineSettings
from services.generator.metrics import GeneratorMetrics
from tests.fakes.openai_stub import OK, USAGE_CHUNK, OpenAIStub, chunk, serving

# Retries as usual, but with waits of milliseconds: no test here is about their length.
FAST = RetryPolicy(attempts=2, first_seconds=0.001, max_seconds=0.002)
STREAM = [chunk("Par"), chunk("is", "stop"), USAGE_CHUNK, b"data: [DONE]\n\n"]
QUESTION = (ChatMessage("user", "capital"),)
FIRST_TEXT = "searchrl_generator_engine_first_text_seconds_count"


@pytest.fixture
def kept() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.set_provider(provider)
    yield exporter
    tracing.set_provider(None)


def engine_at(url: str, registry: CollectorRegistry) -> OpenAIEngine:
    metrics = GeneratorMetrics(registry).engine("generator")
    settings = ChatEngineSettings(kind="url", base_url=url, model="m", thoughts="outside")
    return OpenAIEngine(settings, metrics, retries=FAST, use_proxies=False)


def test_slots_are_exported_before_the_first_request() -> None:
    registry = CollectorRegistry()
    Admission("answers", 7, GeneratorMetrics(registry))
    assert registry.get_sample_value("searchrl_generator_slots", {"kind": "answers"}) == 7


async def test_the_time_to_the_first_text_is_taken_once_per_stream() -> None:
    registry = CollectorRegistry()
    async with serving(OpenAIStub(STREAM)) as url:
        engine = engine_at(url, registry)
        assert registry.get_sample_value(FIRST_TEXT, {"engine": "generator"}) == 0
        pieces = [piece async for piece in engine.stream(QUESTION, max_tokens=5)]
    assert pieces[:2] == ["Par", "is"]
    assert registry.get_sample_value(FIRST_TEXT, {"engine": "generator"}) == 1


async def test_retries_are_spans_beside_each_other_and_the_server_gets_the_traceparent(
    kept: InMemorySpanExporter,
) -> None:
    stub = OpenAIStub(503, OK)
    async with serving(stub) as url:
        with tracing.span("caller") as caller:
            await engine_at(url, CollectorRegistry()).chat(QUESTION, max_tokens=5)
    failed, good = [span for span in kept.get_finished_spans() if span.kind.name == "CLIENT"]
    assert (failed.attributes or {})["error.type"] == "unavailable" and good.status.is_unset
    assert (good.attributes or {})["gen_ai.usage.output_tokens"] == 1
    assert failed.parent == good.parent == caller.sdk_span.get_span_context()  # type: ignore[union-attr]
    assert good.context is not None
    assert f"{good.context.span_id:016x}" in stub.headers["traceparent"]


async def test_a_streams_span_ends_with_the_reply_or_the_failure(kept: InMemorySpanExporter) -> None:
    async with serving(OpenAIStub(STREAM, [chunk("Par"), None])) as url:
        engine = engine_at(url, CollectorRegistry())
        async for _ in engine.stream(QUESTION, max_tokens=5):
            pass
        with pytest.raises(Unavailable):
            async for _ in engine.stream(QUESTION, max_tokens=5):
                pass
    good, broken = kept.get_finished_spans()
    assert good.status.is_unset and (good.attributes or {})["gen_ai.usage.input_tokens"] == 5
    assert (broken.attributes or {})["error.type"] == "unavailable"
    assert "capital" not in good.to_json()
