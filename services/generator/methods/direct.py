"""Provides the method ``direct``: the generator answers from memory."""

from typing import Self

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from services.generator.methods.base import AnsweringMethod, Emit, MethodOptions, MethodParts, answer_from_documents
from services.generator.prompting.context_answerer import ContextAnswerer


class DirectMethod(AnsweringMethod):
    """Answers without retrieval (closed book)."""

    name = "direct"
    defaults = MethodOptions()

    def __init__(self, answerer: ContextAnswerer) -> None:
        self._answerer = answerer

    @classmethod
    def build(cls, parts: MethodParts) -> Self:
        return cls(parts.answerer)

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        return await answer_from_documents(self._answerer, question, (), emit, options=options)
