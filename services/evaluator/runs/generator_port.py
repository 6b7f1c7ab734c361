"""Defines what an evaluation needs from the generator and the retriever."""

from collections.abc import Sequence
from typing import Protocol

from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.question import Choice, Question
from services.evaluator.records.evaluation_run import MethodSpec


class NotApplicable(Exception):
    """The method does not apply to the question; the message says why. Neither a failure nor a wrong answer."""


class AnsweringGenerator(Protocol):
    """The generator service. Every call may raise ``searchrl.errors.ServiceError``; none invents an answer.

    ``answer`` may also raise ``NotApplicable``.
    """

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answer: ...

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict: ...

    async def list_methods(self) -> list[str]: ...


class PassageLookup(Protocol):
    """The retriever service, as far as controls need it."""

    async def find_missing(self, ids: Sequence[str]) -> set[str]:
        """Those of ``ids`` that the corpus does not contain."""
        ...

    async def index_generation(self) -> str:
        """Name of the index generation that answers searches now."""
        ...
