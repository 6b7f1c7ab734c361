"""Runs the stages of a search in order, each with its own verb and in its own thread.

    look up      RankingCache.get_or_compute   event loop        rankings in memory, in Redis or in flight
    batch        QueryBatcher.submit           event loop        missing queries, with those of other requests
    first stage  Ranker.rank                   batcher's thread  each index of the mode gives rows of its generation
    fuse         ReciprocalRankFusion.fuse     batcher's thread  rankings of several first stages become one
    fetch        SearchPipeline.fetch          reader threads    rows become passages

A reranker joins between fuse and fetch, in the batcher's thread: it reorders the fused rows by query and text, and
its fingerprint becomes part of ``RankingScope.model``, so that cached rankings of another reranker are not used. A web
engine is a first stage of another family: it returns passages with their URLs instead of rows, which need no fetch.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from searchrl.errors import DeadlineExceeded, ErrorKind
from searchrl.platform.request_context import remaining_seconds
from searchrl.platform.telemetry.tracing import span
from services.retriever.generations.generation import Generation
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import (
    FUSION_DEPTH,
    RankedRows,
    Ranker,
    Ranking,
    RankingFailure,
    RankingScope,
    ReciprocalRankFusion,
)
from services.retriever.serving.active_index import ActiveIndex
from services.retriever.serving.fair_queue import RankBatch
from services.retriever.serving.query_batcher import QueryBatcher
from services.retriever.serving.ranking_cache import RankingCache, cache_key

Fetched = TypeVar("Fetched")


class SearchPipeline:
    """Ranks queries and fetches what was ranked. Its methods run in the event loop."""

    def __init__(self, cache: RankingCache, batcher: QueryBatcher, metrics: RetrieverMetrics) -> None:
        self._cache = cache
        self._batcher = batcher
        self._metrics = metrics
        # Two: parsing rows holds the interpreter lock, so more threads would not read faster; with one thread, a small
        # request would wait for a large one.
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="passage-reader")

    async def rank(self, generation: Generation, scope: RankingScope, queries: Sequence[str]) -> dict[str, Ranking]:
        """Look up, batch, first stage and fuse: a ranking for every distinct query.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: the request's deadline passed.
            Unavailable: the retriever is stopping.
        """
        deadline_seconds = remaining_seconds()
        submit = partial(
            self._batcher.submit,
            scope=scope,
            rank=partial(rank_and_fuse, generation.first_stages[scope.mode]),
            deadline_seconds=deadline_seconds,
        )
        query_of = {cache_key(scope, query): query for query in dict.fromkeys(queries)}
        try:
            # The batcher checks the deadline only before it takes a batch; this covers the wait for the ranking and for
            # Redis too.
            async with asyncio.timeout(deadline_seconds):
                found = await self._cache.get_or_compute(query_of, submit, len(generation.passages))
        except TimeoutError as error:
            self._metrics.rejected.labels(kind=ErrorKind.DEADLINE.value).inc()
            raise DeadlineExceeded("the request's deadline passed before all its queries were ranked") from error
        return {query: found[key] for key, query in query_of.items()}

    async def fetch(
        self, rankings: Sequence[Ranking], read: Callable[[RankedRows], list[Fetched]]
    ) -> list[tuple[list[Fetched], RankingFailure | None]]:
        """Read rows in a reader thread: a page of the mapped file may have to come from disk."""

        def read_all() -> list[tuple[list[Fetched], RankingFailure | None]]:
            return [
                ([], ranking) if isinstance(ranking, RankingFailure) else (read(ranking), None) for ranking in rankings
            ]

        with self._metrics.stage_seconds.labels(stage="fetch").time(), span("fetch"):
            return await self.run_in_reader(read_all)

    async def run_in_reader(self, read: Callable[[], Fetched]) -> Fetched:
        """Call ``read`` in a reader thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    def close(self) -> None:
        """Stop the threads; searches still waiting fail as unavailable."""
        self._batcher.close()
        self._readers.shutdown(wait=False)


def rank_and_fuse(
    first_stages: Sequence[Ranker], queries: Sequence[str], top_k: int, filters: Mapping[str, str]
) -> list[RankedRows]:
    """First stage and fuse, for one batch in the batcher's thread.

    Several first stages are asked for at least ``FUSION_DEPTH`` rows each, and their rankings are fused.
    """
    if len(first_stages) == 1:
        return first_stages[0].rank(queries, top_k, filters)
    depth, fusion = max(top_k, FUSION_DEPTH), ReciprocalRankFusion()
    rankings = [stage.rank(queries, depth, filters) for stage in first_stages]
    return [fusion.fuse([ranked.rows for ranked in of_query], top_k) for of_query in zip(*rankings, strict=True)]


def choose_probe(index: ActiveIndex) -> tuple[RankingScope, RankBatch] | None:
    """What a probe of the index in service ranks; None while there is none. Called in the batcher's thread."""
    # No lock is needed: the event loop replaces the generation in service, but never sets it back to None.
    if not index.is_loaded:
        return None
    generation = index.get()
    mode = generation.default_mode
    scope = RankingScope(generation.id, generation.model_key, mode, 1, ())
    return scope, partial(rank_and_fuse, generation.first_stages[mode])
