"""The answer service: events in order, slots, deadlines, cancellation and refusals."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from searchrl.agent.types import QueriesIssued
from searchrl.domain.answer import Answer, Usage
from searchrl.domain.question import Question
from searchrl.errors import DeadlineExceeded, ErrorKind, InvalidRequest, Overloaded, Unavailable
from searchrl.platform.request_context import deadline
from services.generator.answer_service import RequestLimits
from services.generator.methods.base import AnsweringMethod, AnswerOptions, Emit, MethodOptions, MethodParts
from services.generator.wiring import GeneratorParts
from tests.fakes.generator_parts import PASSAGES, parts_of
from tests.fakes.scripted_engine import ScriptedEngine

QUESTION = Question("q", "Who?")
FINAL = Answer("Jon Reed", ("film",), {"film": PASSAGES[0]}, usage=Usage(10, 2, 8), searches=1, stop_reason="completed")
NO_OPTIONS = AnswerOptions()


class ScriptedMethod(AnsweringMethod):
    """A method that emits one step and then awaits the test's function."""

    name = "scripted"
    defaults = MethodOptions()

    def __init__(self, then: Callable[[], Awaitable[Answer]]) -> None:
        self._then = then
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()

    @classmethod
    def build(cls, parts: MethodParts) -> None:
        return None

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        await emit(QueriesIssued(1, ("a query",)))
        self.started.set()
        try:
            return await self._then()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def at_once() -> Answer:
    return FINAL


async def never() -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


def service(method: ScriptedMethod, **settings: object) -> GeneratorParts:
    return parts_of(ScriptedEngine("x"), [method], **settings)  # type: ignore[arg-type]


def counted(parts: GeneratorParts, outcome: str) -> float | None:
    labels = {"method": "scripted", "outcome": outcome}
    return parts.metrics.registry.get_sample_value("searchrl_generator_answers_total", labels)  # type: ignore[attr-defined]


async def test_steps_come_as_they_happen_and_the_final_answer_last() -> None:
    release = asyncio.Event()

    async def later() -> Answer:
        await release.wait()
        return FINAL

    parts = service(ScriptedMethod(later))
    steps = parts.answers.answer(QUESTION, "scripted", NO_OPTIONS)
    assert await anext(steps) == QueriesIssued(1, ("a query",))
    release.set()
    final = await anext(steps)
    assert isinstance(final, Answer)
    assert final.text == "Jon Reed"
    assert final.documents == ("film",)
    assert final.seconds > 0
    with pytest.raises(StopAsyncIteration):
        await anext(steps)
    assert counted(parts, "ok") == 1


async def test_the_work_stops_if_the_caller_closes_the_steps() -> None:
    method = ScriptedMethod(never)
    parts = service(method, max_answers=1)
    steps = parts.answers.answer(QUESTION, "scripted", NO_OPTIONS)
    await anext(steps)
    await steps.aclose()
    assert method.cancelled.is_set()
    assert counted(parts, "cancelled") == 1
    again = parts.answers.answer(QUESTION, "scripted", NO_OPTIONS)  # the slot is free again
    await anext(again)
    await again.aclose()


async def test_the_work_stops_if_the_caller_is_cancelled() -> None:
    method = ScriptedMethod(never)
    parts = service(method)

    async def listen() -> None:
        async for _ in parts.answers.answer(QUESTION, "scripted", NO_OPTIONS):
            pass

    listener = asyncio.create_task(listen())
    await method.started.wait()
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener
    await asyncio.wait_for(method.cancelled.wait(), 5)


async def test_more_questions_than_slots_are_refused_and_not_queued() -> None:
    parts = service(ScriptedMethod(never), max_answers=1)
    first = parts.answers.answer(QUESTION, "scripted", NO_OPTIONS)
    await anext(first)
    with pytest.raises(Overloaded) as refused:
        await anext(parts.answers.answer(QUESTION, "scripted", NO_OPTIONS))
    assert refused.value.retry_after_seconds
    await first.aclose()
    rejected = {"kind": "answers"}
    assert parts.metrics.registry.get_sample_value("searchrl_generator_requests_rejected_total", rejected) == 1


async def test_the_services_own_time_limit_ends_an_answer() -> None:
    method = ScriptedMethod(never)
    parts = service(method, limits=RequestLimits(answer_seconds=0.05))
    with pytest.raises(DeadlineExceeded):
        async for _ in parts.answers.answer(QUESTION, "scripted", NO_OPTIONS):
            pass
    assert method.cancelled.is_set()
    assert counted(parts, ErrorKind.DEADLINE) == 1


async def test_the_callers_deadline_ends_an_answer() -> None:
    parts = service(ScriptedMethod(never))
    with deadline(0.05), pytest.raises(DeadlineExceeded):
        async for _ in parts.answers.answer(QUESTION, "scripted", NO_OPTIONS):
            pass


async def test_a_timeout_inside_a_method_is_not_taken_for_the_deadline() -> None:
    async def times_out() -> Answer:
        raise TimeoutError("something else")

    with pytest.raises(TimeoutError, match="something else"):
        async for _ in service(ScriptedMethod(times_out)).answers.answer(QUESTION, "scripted", NO_OPTIONS):
            pass


async def test_a_dependency_that_fails_in_the_middle_is_an_error_after_the_steps() -> None:
    async def fails() -> Answer:
        raise Unavailable("retriever gone")

    parts = service(ScriptedMethod(fails))
    seen = []
    with pytest.raises(Unavailable, match="retriever gone"):
        async for step in parts.answers.answer(QUESTION, "scripted", NO_OPTIONS):
            seen.append(step)
    assert seen == [QueriesIssued(1, ("a query",))]
    assert counted(parts, ErrorKind.UNAVAILABLE) == 1


@pytest.mark.parametrize(
    ("question", "method", "options", "names"),
    [
        (QUESTION, "unknown", NO_OPTIONS, "'unknown'.*scripted"),
        (Question("q", " "), "scripted", NO_OPTIONS, "text"),
        (Question("q", "x" * 9000), "scripted", NO_OPTIONS, "8000 characters"),
        (QUESTION, "scripted", AnswerOptions(top_k=0), "top_k"),
        (QUESTION, "scripted", AnswerOptions(top_k=51), "top_k"),
        (QUESTION, "scripted", AnswerOptions(max_searches=-1), "max_searches"),
        (QUESTION, "scripted", AnswerOptions(max_searches=21), "max_searches"),
        (QUESTION, "scripted", AnswerOptions(temperature=-0.1), "temperature"),
        (QUESTION, "scripted", AnswerOptions(temperature=float("nan")), "temperature"),
    ],
)
async def test_an_invalid_request_is_refused_by_the_name_of_its_field(
    question: Question, method: str, options: AnswerOptions, names: str
) -> None:
    with pytest.raises(InvalidRequest, match=names):
        await anext(service(ScriptedMethod(at_once)).answers.answer(question, method, options))


async def test_generations_beyond_the_limit_are_refused() -> None:
    engine = ScriptedEngine("hang for ever")
    parts = parts_of(engine, max_generations=1)
    first = asyncio.create_task(parts.generations.answer_from_context("Who?", ()))
    await engine.waiting.wait()
    with pytest.raises(Overloaded):
        await parts.generations.answer_from_context("Who?", ())
    with pytest.raises(Overloaded):
        await parts.generations.judge("Who?", "a", ["b"])
    first.cancel()
    await asyncio.wait({first})
    with pytest.raises(InvalidRequest, match="blank"):
        await parts.generations.answer_from_context(" ", ())
