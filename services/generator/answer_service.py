"""Answers a question online: admits it, runs an answering method within a time limit, and yields its steps."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass, replace

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from searchrl.errors import DeadlineExceeded, InvalidRequest
from searchrl.platform.request_context import tighten_deadline
from searchrl.platform.tracing import span
from services.generator.admission import Admission
from services.generator.methods.answering_method import AnsweringMethod, AnswerOptions, Step
from services.generator.metrics import GeneratorMetrics, count_outcome


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Limits of one question and its answer; the defaults are those of the settings ``limits``."""

    max_top_k: int = 50
    max_searches: int = 20
    max_question_characters: int = 8000
    seconds: float = 120.0
    max_conversation_characters: int = 100_000


class AnswerService:
    """Runs answering methods for both transports and the OpenAI API."""

    def __init__(
        self,
        methods: Mapping[str, AnsweringMethod],
        limits: AnswerLimits,
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
        chosen = self._check_request(question, method, options)
        with self._admission.slot():
            # The method runs in a task of its own, so that it continues while the caller sends a step to its client.
            # None, put by the callback whatever ended the task, ends the loop; the last await then raises its error.
            steps: asyncio.Queue[Step | None] = asyncio.Queue()
            work = asyncio.create_task(self._run(chosen, question, options, steps))
            work.add_done_callback(lambda _: steps.put_nowait(None))
            try:
                while (step := await steps.get()) is not None:
                    yield step
                yield await work
            finally:
                work.cancel()
                await asyncio.wait({work})  # the slot is free only when the work has really ended

    async def _run(
        self, method: AnsweringMethod, question: Question, options: AnswerOptions, steps: asyncio.Queue[Step | None]
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
        seconds = tighten_deadline(self._limits.seconds)
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
