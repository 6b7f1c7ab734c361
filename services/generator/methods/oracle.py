"""Provides the control ``oracle``: the generator answers from the gold passages. Not a method to deploy."""

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound
from services.generator.methods.base import (
    Emit,
    MethodOptions,
    RecordingRetriever,
    RetrievalMethod,
    answer_from_documents,
)


class OracleMethod(RetrievalMethod):
    """Gives the generator the question's gold passages: an upper bound for any searcher."""

    name = "oracle"

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        ids = question.gold_passage_ids
        if not ids:
            raise InvalidRequest("the oracle needs the question's gold_passage_ids, and there are none")
        retrieval = RecordingRetriever(self._retriever)
        found = {passage.id: passage for passage in await retrieval.get_passages(ids)}
        # All or none: an answer from some of the gold passages would be no upper bound.
        missing = [id for id in ids if id not in found]
        if missing:
            raise NotFound(f"gold passages are not in the index: {', '.join(missing[:5])}")
        # In the order of the question file, because the order of documents affects what a generator answers.
        documents = [found[id] for id in ids]
        return await answer_from_documents(
            self._answerer, question, documents, emit, options=options, retrieval=retrieval
        )
