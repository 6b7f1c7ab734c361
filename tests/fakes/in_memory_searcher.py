"""A searcher over a handful of passages, with outages on demand."""

from collections.abc import Mapping, Sequence

from searchrl.domain.passage import Passage, SearchResult


class InMemorySearcher:
    """Ranks passages by the number of words they share with the query (ties: given order).

    ``failures`` are raised first, one per call. Filters are metadata equalities, as in the real retriever.
    ``generations`` are the index generations of the calls in order; the last one is repeated.
    """

    mode = ""

    def __init__(self, passages: Sequence[Passage], failures: Sequence[Exception] = ()) -> None:
        self._passages = list(passages)
        self._failures = list(failures)
        self.generations = ["g1"]
        self.calls: list[tuple[tuple[str, ...], int, dict[str, str]]] = []

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        self.calls.append((tuple(queries), top_k, dict(filters)))
        if self._failures:
            raise self._failures.pop(0)
        return [self._rank(query, top_k, filters) for query in queries]

    async def search_with_generation(
        self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]
    ) -> tuple[list[list[SearchResult]], str]:
        return await self.search(queries, top_k, filters), self._generation()

    def _generation(self) -> str:
        return self.generations.pop(0) if len(self.generations) > 1 else self.generations[0]

    def _rank(self, query: str, top_k: int, filters: Mapping[str, str]) -> list[SearchResult]:
        words = set(query.lower().split())
        scored = [
            (len(words & set(f"{passage.title} {passage.text}".lower().split())), passage)
            for passage in self._passages
            if all(passage.metadata.get(key) == value for key, value in filters.items())
        ]
        best = sorted(scored, key=lambda pair: -pair[0])[:top_k]
        return [SearchResult(passage, float(score), rank) for rank, (score, passage) in enumerate(best, start=1)]


def results_of(*passages: Passage) -> list[SearchResult]:
    """Return the passages as results, in this order."""
    return [SearchResult(passage, 1.0 / rank, rank) for rank, passage in enumerate(passages, start=1)]
