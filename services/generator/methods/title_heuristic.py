"""Provides the control ``title_heuristic``: searches every title and name found for the question, keeps all results."""

import re
from collections.abc import Iterator, Sequence

from searchrl.agent.types import DocumentsFound, QueriesIssued
from searchrl.domain.answer import Answer
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from services.generator.methods.base import (
    Emit,
    MethodOptions,
    RecordingRetriever,
    RetrievalMethod,
    answer_from_documents,
)

_NAME = re.compile(r"[A-Z]\w+(?: [A-Z]\w+)+")


class TitleHeuristicMethod(RetrievalMethod):
    """Follows every initial document one step, without selection: the fixed rule that a searcher has to beat.

    Queries are the titles of the initial documents and then the names in their texts (two or more capitalized words
    in a row, which may be other documents' titles). Each is searched once, all in one call; documents keep the order
    in which they were first found.
    """

    name = "title_heuristic"

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        top_k = options.top_k
        retrieval = RecordingRetriever(self._retriever)
        (initial,) = await retrieval.search([question.retrieval_query], top_k, question.filters)
        await emit(DocumentsFound(0, question.retrieval_query, tuple(initial)))
        found: dict[str, Passage] = {result.passage.id: result.passage for result in initial}
        # Ordered and without repetitions: titles first, so that a limit on searches cuts the guesses from texts.
        titles = tuple(dict.fromkeys(_list_likely_titles(initial)))[: options.max_searches]
        if titles:
            await emit(QueriesIssued(1, titles))
            for title, results in zip(titles, await retrieval.search(titles, top_k, question.filters), strict=True):
                await emit(DocumentsFound(1, title, tuple(results)))
                for result in results:
                    found.setdefault(result.passage.id, result.passage)
        return await answer_from_documents(
            self._answerer,
            question,
            tuple(found.values()),
            emit,
            options=options,
            searches=len(titles),
            retrieval=retrieval,
            top_k=top_k,
        )


def _list_likely_titles(results: Sequence[SearchResult]) -> Iterator[str]:
    yield from (result.passage.title for result in results if result.passage.title.strip())
    for result in results:
        yield from _NAME.findall(result.passage.text)
