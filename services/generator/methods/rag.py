"""Provides the method ``rag``, naive retrieval-augmented generation: one search with the question, then an answer."""

from searchrl.agent.search_loop import DocumentsFound
from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from services.generator.methods.answering_method import AnswerOptions, Emit, answer_from_documents
from services.generator.methods.recorded_calls import RecordingRetriever, Retriever
from services.generator.prompting.context_answerer import ContextAnswerer


class RagMethod:
    """The baseline of Gain Beyond RAG: answers from the ``top_k`` best passages for the question's own words."""

    name = "rag"

    def __init__(self, retriever: Retriever, answerer: ContextAnswerer, top_k: int) -> None:
        self._retriever = retriever
        self._answerer = answerer
        self._top_k = top_k

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> Answer:
        top_k = self._top_k if options.top_k is None else options.top_k
        retrieval = RecordingRetriever(self._retriever)
        (results,) = await retrieval.search([question.retrieval_query], top_k, question.filters)
        await emit(DocumentsFound(0, question.retrieval_query, tuple(results)))
        documents = [result.passage for result in results]
        return await answer_from_documents(
            self._answerer, question, documents, emit, options=options, retrieval=retrieval, top_k=top_k
        )
