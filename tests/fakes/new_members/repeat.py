"""A new answering method: repeats the question as its answer."""

from typing import Self

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from services.generator.methods.base import AnsweringMethod, Emit, MethodOptions, MethodParts


class RepeatMethod(AnsweringMethod):
    """Answers with the question."""

    name = "repeat"
    defaults = MethodOptions()

    @classmethod
    def build(cls, parts: MethodParts) -> Self:
        return cls()

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        return Answer(question.text)
