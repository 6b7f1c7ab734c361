"""What does the frozen generator do for training and evaluation? It answers from given passages and judges."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from searchrl.domain.passage import Passage
from searchrl.errors import InvalidRequest, Overloaded
from services.generator.judging.judge import Judge, Verdict
from services.generator.metrics import GeneratorMetrics
from services.generator.prompting.context_answerer import ContextAnswer, ContextAnswerer

KIND = "generations"


class Admission:
    """Lets a bounded number of requests of one kind work at once; more are refused, not queued."""

    def __init__(self, kind: str, max_in_flight: int, metrics: GeneratorMetrics) -> None:
        self._kind = kind
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._gauge = metrics.in_flight.labels(kind)
        self._rejected = metrics.rejected.labels(kind)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot.

        Raises:
            Overloaded: all are taken; the caller may retry.
        """
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


class GenerationService:
    """The environment's half of the generator; both transports call it."""

    def __init__(self, answerer: ContextAnswerer, judge: Judge, admission: Admission) -> None:
        self._answerer = answerer
        self._judge = judge
        self._admission = admission

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> ContextAnswer:
        """The frozen generator's answer from ``passages`` alone; without any, its closed-book answer.

        Raises:
            InvalidRequest: the question is blank.
            ServiceError: overloaded, or the engine failed; never an empty answer in its place.
        """
        if not question.strip():
            raise InvalidRequest("question: must not be blank")
        with self._admission.slot():
            return await self._answerer.answer(question, passages)

    async def judge(self, question: str, answer: str, golden_answers: Sequence[str]) -> Verdict:
        """Is ``answer`` right? See ``Judge.decide``."""
        with self._admission.slot():
            return await self._judge.decide(question, answer, golden_answers)
