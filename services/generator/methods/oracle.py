"""How well does the generator answer with exactly the right documents? A control, not a method to deploy."""

from collections.abc import Sequence
from typing import Protocol

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound
from services.generator.methods.answering_method import AnswerOptions, Emit, FinalAnswer, answer_from
from services.generator.prompting.context_answerer import ContextAnswerer


class PassageSource(Protocol):
    """Passages by their ids."""

    async def get_passages(self, ids: Sequence[str]) -> list[Passage]: ...


class OracleMethod:
    """Hands the generator the question's gold passages: an upper bound for any searcher."""

    name = "oracle"

    def __init__(self, passages: PassageSource, answerer: ContextAnswerer) -> None:
        self._passages = passages
        self._answerer = answerer

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> FinalAnswer:
        ids = question.gold_passage_ids
        if not ids:
            raise InvalidRequest("the oracle needs the question's gold_passage_ids, and there are none")
        found = {passage.id: passage for passage in await self._passages.get_passages(ids)}
        missing = [id for id in ids if id not in found]
        if missing:
            raise NotFound(f"gold passages are not in the index: {', '.join(missing[:5])}")
        return await answer_from(self._answerer, question, [found[id] for id in ids], emit)
