"""Provides the control ``oracle``: the generator answers from the gold passages. Not a method to deploy."""

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound
from services.generator.methods.answering_method import AnswerOptions, Emit, answer_from_documents
from services.generator.methods.recorded_calls import RecordingRetriever, Retriever
from services.generator.prompting.context_answerer import ContextAnswerer


class OracleMethod:
    """Gives the generator the question's gold passages: an upper bound for any searcher."""

    name = "oracle"

    def __init__(self, retriever: Retriever, answerer: ContextAnswerer) -> None:
        self._retriever = retriever
        self._answerer = answerer

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> Answer:
        ids = question.gold_passage_ids
        if not ids:
            raise InvalidRequest("the oracle needs the question's gold_passage_ids, and there are none")
        retrieval = RecordingRetriever(self._retriever)
        found = {passage.id: passage for passage in await retrieval.get_passages(ids)}
        missing = [id for id in ids if id not in found]
        if missing:
            raise NotFound(f"gold passages are not in the index: {', '.join(missing[:5])}")
        return await answer_from_documents(
            self._answerer, question, [found[id] for id in ids], emit, options=options, retrieval=retrieval
        )
