"""Provides the calls behind both transports: online answers, answers from given passages, and verdicts.

Each call is admitted, or refused, first; an online answer runs within a time limit and yields its steps.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pydantic import Field, PositiveFloat, PositiveInt

from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice, Question
from searchrl.errors import DeadlineExceeded, InvalidRequest, Overloaded
from searchrl.platform.request_context import tighten_deadline
from searchrl.platform.settings import Section
from searchrl.platform.telemetry.tracing import span
from services.generator.judging.judge import Judge
from services.generator.methods.base import AnsweringMethod, AnswerOptions, MethodOptions, Step
from services.generator.metrics import GeneratorMetrics, count_outcome
from services.generator.prompting.context_answerer import ContextAnswerer


class RequestLimits(Section):
    """Admission and sizes."""

    # Fewer than ``max_generations``: an answer holds its searches and turns of the searcher for seconds or minutes.
    max_answers: PositiveInt = Field(default=64, description="Questions answered concurrently; more are refused.")
    max_generations: PositiveInt = Field(
        default=1024, description="Other generations run concurrently; more are refused."
    )
    answer_seconds: PositiveFloat = Field(default=120.0, description="Time for one question.")
    max_top_k: PositiveInt = Field(default=50, description="Largest top_k of a question.")
    max_searches: PositiveInt = Field(default=20, description="Largest max_searches of a question.")
    max_question_characters: PositiveInt = Field(default=8000, description="Longest question.")
    max_conversation_characters: PositiveInt = Field(
        default=100_000, description="Longest system text and earlier turns of a chat with a searching model."
    )


class Admission:
    """Admits a bounded number of requests of one kind at once; further ones are refused, not queued.

    It needs no lock: all requests run in one event loop, and nothing is awaited between the check and the count.
    """

    def __init__(self, kind: str, max_in_flight: int, metrics: GeneratorMetrics) -> None:
        self._kind = kind
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._gauge = metrics.in_flight.labels(kind)
        metrics.slots.labels(kind).set(max_in_flight)
        self._rejected = metrics.rejected.labels(kind)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot.

        Raises:
            Overloaded: all are taken; the caller may retry.
        """
        # Refused and not queued: a caller that is told at once can go to another replica, and a queue would only use up
        # its deadline.
        if self._in_flight >= self._max_in_flight:
            self._rejected.inc()
            raise Overloaded(f"all {self._max_in_flight} slots for {self._kind} are taken")
        self._in_flight += 1
        self._gauge.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._gauge.set(self._in_flight)


class AnswerService:
    """Runs answering methods for both transports and the OpenAI API."""

    def __init__(
        self,
        methods: Mapping[str, AnsweringMethod],
        limits: RequestLimits,
        admission: Admission,
        metrics: GeneratorMetrics,
    ) -> None:
        self._methods = methods
        self._limits = limits
        self._admission = admission
        self._metrics = metrics

    def methods(self) -> list[str]:
        """Return the names of the methods that this generator serves."""
        return list(self._methods)

    async def answer(self, question: Question, method: str, options: AnswerOptions) -> AsyncGenerator[Step | Answer]:
        """Yield the steps as they happen and the final answer last.

        If the caller closes the generator early, the work is cancelled.

        Raises:
            InvalidRequest: unknown method, blank question, or an option out of range.
            DeadlineExceeded: the caller's deadline or the service's own limit passed.
            ServiceError: overloaded, or a dependency failed; never an answer in its place.
        """
        # Before a slot is taken: invalid requests are refused as such even when all slots are taken.
        chosen = self._check_request(question, method, options)
        with self._admission.slot():
            # The method runs in a task of its own, so that it continues while the caller sends a step to its client.
            # None, put by the callback whatever ended the task, ends the loop; the last await then raises its error.
            steps: asyncio.Queue[Step | None] = asyncio.Queue()
            work = asyncio.create_task(self._run(chosen, question, options.over(chosen.defaults), steps))
            work.add_done_callback(lambda _: steps.put_nowait(None))
            try:
                while (step := await steps.get()) is not None:
                    yield step
                yield await work
            finally:
                work.cancel()
                await asyncio.wait({work})  # the slot is free only when the work has really ended

    async def _run(
        self, method: AnsweringMethod, question: Question, options: MethodOptions, steps: asyncio.Queue[Step | None]
    ) -> Answer:
        started = time.monotonic()
        with (
            count_outcome(lambda outcome: self._metrics.answers.labels(method.name, outcome).inc()),
            span("answer", {"searchrl.method": method.name}) as answering,
        ):
            final = await self._run_within_limit(method.answer(question, options, steps.put))
            answering.set_attributes({"searchrl.searches": final.searches, "searchrl.stop_reason": final.stop_reason})
        seconds = time.monotonic() - started
        self._observe(method.name, final, seconds)
        return replace(final, seconds=seconds)

    async def _run_within_limit(self, work: Coroutine[None, None, Answer]) -> Answer:
        seconds = tighten_deadline(self._limits.answer_seconds)
        clock = asyncio.timeout(seconds)
        try:
            async with clock:
                return await work
        except TimeoutError as error:
            if not clock.expired():  # a TimeoutError of the method's own
                raise
            raise DeadlineExceeded(f"no complete answer within {seconds:.1f} s") from error

    def _observe(self, method: str, final: Answer, seconds: float) -> None:
        self._metrics.answer_seconds.labels(method).observe(seconds)
        self._metrics.answer_searches.labels(method).observe(final.searches)
        self._metrics.answer_documents.labels(method).observe(len(final.documents))

    def _check_request(self, question: Question, method: str, options: AnswerOptions) -> AnsweringMethod:
        limits = self._limits
        chosen = self._methods.get(method)
        if chosen is None:
            raise InvalidRequest(f"method '{method}' is not served here; served: {', '.join(self._methods)}")
        if not question.text.strip():
            raise InvalidRequest("question.text: must not be blank")
        longest = max(map(len, (question.text, question.generator_text, question.retrieval_query)))
        if longest > limits.max_question_characters:
            raise InvalidRequest(f"question.text: over {limits.max_question_characters} characters")
        if options.top_k is not None and not 1 <= options.top_k <= limits.max_top_k:
            raise InvalidRequest(f"top_k: must be 1 to {limits.max_top_k}, got {options.top_k}")
        if options.max_searches is not None and not 0 <= options.max_searches <= limits.max_searches:
            raise InvalidRequest(f"max_searches: must be 0 to {limits.max_searches}, got {options.max_searches}")
        if options.temperature is not None and not 0 <= options.temperature <= 2:
            raise InvalidRequest(f"temperature: must be 0 to 2, got {options.temperature:g}")
        reply = options.reply
        characters = len(reply.instructions) + sum(len(message.content) for message in reply.history)
        if characters > limits.max_conversation_characters:
            raise InvalidRequest(f"messages: over {limits.max_conversation_characters} characters before the question")
        return chosen


class GenerationService:
    """The calls that rewards and evaluations make; both transports use it."""

    def __init__(self, answerer: ContextAnswerer, judge: Judge, admission: Admission) -> None:
        self._answerer = answerer
        self._judge = judge
        self._admission = admission

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        """Return the frozen generator's answer from ``passages`` alone; without any, its closed-book answer.

        Raises:
            InvalidRequest: the question is blank.
            ServiceError: overloaded, or the engine failed; never an empty answer in its place.
        """
        if not question.strip():
            raise InvalidRequest("question: must not be blank")
        with self._admission.slot():
            return await self._answerer.answer(question, passages)

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        """Decide whether ``answer`` is correct; see ``Judge.decide``."""
        with self._admission.slot():
            return await self._judge.decide(question, answer, golden_answers, choices)
