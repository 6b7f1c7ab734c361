"""How far does a fixed rule get? Search every title found for the question and keep everything."""

from searchrl.agent.ports import Searcher
from searchrl.agent.search_loop import DocumentsFound, QueriesIssued
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from services.generator.methods.answering_method import AnswerOptions, Emit, FinalAnswer, answer_from
from services.generator.prompting.context_answerer import ContextAnswerer


class TitleHeuristicMethod:
    """Follows every initial document one step by its title, without judging: the rule a searcher has to beat.

    Documents keep the order in which they were first found. One query per distinct title, sent together.
    """

    name = "title_heuristic"

    def __init__(self, searcher: Searcher, answerer: ContextAnswerer, top_k: int) -> None:
        self._searcher = searcher
        self._answerer = answerer
        self._top_k = top_k

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> FinalAnswer:
        top_k = self._top_k if options.top_k is None else options.top_k
        (initial,) = await self._searcher.search([question.text], top_k, question.filters)
        await emit(DocumentsFound(0, question.text, tuple(initial)))
        found: dict[str, Passage] = {result.passage.id: result.passage for result in initial}
        titles = tuple(dict.fromkeys(result.passage.title for result in initial if result.passage.title.strip()))
        titles = titles[: options.max_searches]
        if titles:
            await emit(QueriesIssued(1, titles))
            for title, results in zip(
                titles, await self._searcher.search(titles, top_k, question.filters), strict=True
            ):
                await emit(DocumentsFound(1, title, tuple(results)))
                for result in results:
                    found.setdefault(result.passage.id, result.passage)
        return await answer_from(self._answerer, question, tuple(found.values()), emit, searches=len(titles))
