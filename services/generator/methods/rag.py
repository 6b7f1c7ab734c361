"""Provides the method ``rag``, naive retrieval-augmented generation: one search with the question, then an answer."""

from searchrl.agent.types import DocumentsFound
from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from services.generator.methods.base import (
    Emit,
    MethodOptions,
    RecordingRetriever,
    RetrievalMethod,
    answer_from_documents,
)


class RagMethod(RetrievalMethod):
    """The baseline of Gain Beyond RAG: answers from the ``top_k`` best passages for the question's own words."""

    name = "rag"

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        retrieval = RecordingRetriever(self._retriever)
        (results,) = await retrieval.search([question.retrieval_query], options.top_k, question.filters)
        await emit(DocumentsFound(0, question.retrieval_query, tuple(results)))
        documents = [result.passage for result in results]
        return await answer_from_documents(
            self._answerer, question, documents, emit, options=options, retrieval=retrieval, top_k=options.top_k
        )
