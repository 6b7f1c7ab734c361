"""Provides the control ``random_retriever``, whose documents are independent of the question's ranking."""

import random
import re
from collections.abc import Mapping, Sequence

from searchrl.agent.types import DocumentsFound, Searcher
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

HOPS = 3  # steps away from the question's own results; with fewer, the documents stay close to its subject
POOL = 30  # passages to draw from at each step; with fewer, the walk follows the best matches of its queries
WORDS_PER_QUERY = 2  # with more words, a query tends to find the passage from which they are drawn
# From three letters on: shorter words are mostly function words, which match everywhere.
_WORD = re.compile(r"\w{3,}")


class RandomRetrieverMethod(RetrievalMethod):
    """Draws documents by a seeded random walk over the corpus.

    A retriever has no call for "any passage", so the walk starts at the question's own results and takes ``HOPS``
    steps: draw a passage of the current pool, draw words of it, search them for the next pool. The documents are
    drawn from the last pool, so their order and choice do not depend on any ranking for the question. The draw is a
    function of the seed and the question's id and text. The question's filters apply, as in every method.
    A relevant passage can come up by chance, as it can for a uniformly random retriever.
    """

    name = "random_retriever"

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        top_k = options.top_k
        # A string as the seed is hashed with SHA-512, so that the draw is equal in all processes (``hash`` of a str is
        # not).
        draw = random.Random(f"{options.seed or 0}:{question.id}:{question.text}")
        retrieval = RecordingRetriever(self._retriever)
        pool = await _search_pool(retrieval, question.retrieval_query, question.filters)
        for _ in range(HOPS):
            if not pool:
                break
            # A query that finds nothing, as a filter may cause, keeps the walk where it is.
            pool = await _search_pool(retrieval, _draw_words(draw.choice(pool), draw), question.filters) or pool
        documents = draw.sample(pool, min(top_k, len(pool)))
        results = tuple(SearchResult(passage, 0.0, rank) for rank, passage in enumerate(documents, start=1))
        await emit(DocumentsFound(0, "", results))
        return await answer_from_documents(
            self._answerer, question, documents, emit, options=options, retrieval=retrieval, top_k=top_k
        )


async def _search_pool(searcher: Searcher, query: str, filters: Mapping[str, str]) -> Sequence[Passage]:
    (results,) = await searcher.search([query], POOL, filters)
    return [result.passage for result in results]


def _draw_words(passage: Passage, draw: random.Random) -> str:
    # Sorted, because the order of a set of strings differs between processes.
    words = sorted(set(_WORD.findall(f"{passage.title} {passage.text}"))) or [passage.title or passage.id]
    return " ".join(draw.sample(words, min(WORDS_PER_QUERY, len(words))))
