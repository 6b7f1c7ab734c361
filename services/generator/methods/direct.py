"""Provides the method ``direct``: the generator answers from memory."""

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from services.generator.methods.answering_method import AnswerOptions, Emit, answer_from_documents
from services.generator.prompting.context_answerer import ContextAnswerer


class DirectMethod:
    """Answers without retrieval (closed book)."""

    name = "direct"

    def __init__(self, answerer: ContextAnswerer) -> None:
        self._answerer = answerer

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> Answer:
        return await answer_from_documents(self._answerer, question, (), emit, options=options)
