"""Answers from given passages and judges answers, for training and evaluation."""

from collections.abc import Sequence

from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice
from searchrl.errors import InvalidRequest
from services.generator.admission import Admission
from services.generator.judging.judge import Judge
from services.generator.prompting.context_answerer import ContextAnswerer


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
