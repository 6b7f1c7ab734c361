"""Runs the stages of a search in order, each with its own verb and in its own thread.

    look up      SearchPipeline.look_up        event loop        rankings in memory, then in Redis
    share        BatchFlight.run               event loop        queries that another request is having ranked right now
    batch        QueryBatcher.submit           event loop        missing queries, with those of other requests
    first stage  Ranker.rank                   batcher's thread  each index of the mode gives rows of its generation
    fuse         ReciprocalRankFusion.fuse     batcher's thread  rankings of several first stages become one
    keep         SearchPipeline.keep           event loop        new rankings go into memory and Redis
    fetch        SearchPipeline.fetch          reader threads    rows become passages

A reranker joins between fuse and keep, in the batcher's thread: it reorders the fused rows by query and text, and
its fingerprint becomes part of ``RankingScope.model``, so that cached rankings of another reranker are not used. A web
engine is a first stage of another family: it returns passages with their URLs instead of rows, which need no fetch.
"""

import asyncio
import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import orjson

from searchrl.errors import DeadlineExceeded, ErrorKind
from searchrl.platform.caches import BatchFlight, LruCache
from searchrl.platform.json_text import without_lone_surrogates
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
from services.retriever.serving.redis_cache import CacheSettings, RedisCache

# Measured with sys.getsizeof on CPython 3.11: key, tuple, two lists and the entry; then a row number, a score and their
# two references.
_BYTES_PER_RANKING = 400
_BYTES_PER_RESULT = 76

Fetched = TypeVar("Fetched")


class SearchPipeline:
    """Ranks queries and fetches what was ranked. Its methods run in the event loop.

    A ranking that is neither cached nor being computed is computed once, however many callers wait for it. All callers
    receive the same ``RankedRows`` object, so nobody may change its lists.
    """

    def __init__(
        self, settings: CacheSettings, shared: RedisCache | None, batcher: QueryBatcher, metrics: RetrieverMetrics
    ) -> None:
        self._memory = build_memory_cache(settings.memory_entries, settings.memory_megabytes << 20)
        self._shared = shared
        self._flights: BatchFlight[str, Ranking] = BatchFlight(metrics.shared_flights.inc)
        self._batcher = batcher
        self._metrics = metrics
        # Two: parsing rows holds the interpreter lock, so more threads would not read faster; with one thread, a small
        # request would wait for a large one.
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="passage-reader")

    async def rank(self, generation: Generation, scope: RankingScope, queries: Sequence[str]) -> dict[str, Ranking]:
        """Return a ranking for every distinct query: all stages but fetch.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: the request's deadline passed.
            Unavailable: the retriever is stopping.
        """
        deadline_seconds = remaining_seconds()
        query_of = {cache_key(scope, query): query for query in dict.fromkeys(queries)}
        try:
            # The batcher checks the deadline only before it takes a batch; this covers the wait for the ranking and for
            # Redis too.
            async with asyncio.timeout(deadline_seconds):
                found = await self._look_up_or_rank(generation, scope, query_of, deadline_seconds)
        except TimeoutError as error:
            self._metrics.rejected.labels(kind=ErrorKind.DEADLINE.value).inc()
            raise DeadlineExceeded("the request's deadline passed before all its queries were ranked") from error
        return {query: found[key] for key, query in query_of.items()}

    async def _look_up_or_rank(
        self, generation: Generation, scope: RankingScope, query_of: Mapping[str, str], deadline_seconds: float | None
    ) -> dict[str, Ranking]:
        """Look up, share, batch, first stage, fuse and keep.

        If the caller that ranks a query fails or is cancelled, those that waited for it rank the query themselves.
        """
        with self._metrics.stage_seconds.labels(stage="cache").time():
            found: dict[str, Ranking] = dict(await self.look_up(list(query_of), len(generation.passages)))
        rank = partial(rank_and_fuse, generation.first_stages[scope.mode])

        async def rank_missing(keys: Sequence[str]) -> Sequence[Ranking]:
            rankings = await self._batcher.submit([query_of[key] for key in keys], scope, rank, deadline_seconds)
            self.keep(dict(zip(keys, rankings, strict=True)))
            return rankings

        missing = [key for key in query_of if key not in found]
        return found | await self._flights.run(missing, rank_missing)

    async def look_up(self, keys: Sequence[str], passages: int) -> dict[str, RankedRows]:
        """Return the cached rankings; row numbers from Redis lie within the ``passages`` of the corpus."""
        found = {key: ranking for key in keys if (ranking := self._memory.get(key)) is not None}
        missing = [key for key in keys if key not in found]
        self._count("memory", len(found), len(missing))
        if self._shared is not None and not self._shared.is_available:
            self._metrics.cache_bypasses.inc(len(missing))
        elif self._shared is not None and missing:
            shared = await self._shared.get_many(missing, passages)
            self._count("redis", len(shared), len(missing) - len(shared))
            for key, ranking in shared.items():
                self._remember(key, ranking)
            found |= shared
        return found

    def keep(self, rankings: Mapping[str, Ranking]) -> None:
        """Cache the rankings, but no failure."""
        # A failure would outlast what caused it, such as a GPU that ran out of memory for a moment.
        complete = {key: found for key, found in rankings.items() if isinstance(found, RankedRows)}
        for key, ranking in complete.items():
            self._remember(key, ranking)
        if self._shared is not None:
            self._shared.put_many(complete)

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

    def _remember(self, key: str, ranking: RankedRows) -> None:
        self._metrics.cache_evictions.inc(self._memory.put(key, ranking))
        self._metrics.cache_entries.set(len(self._memory))
        self._metrics.cache_bytes.set(self._memory.bytes)

    def _count(self, layer: str, hits: int, misses: int) -> None:
        self._metrics.cache_lookups.labels(layer=layer, result="hit").inc(hits)
        self._metrics.cache_lookups.labels(layer=layer, result="miss").inc(misses)


def normalize_query(query: str) -> str:
    """Return ``query`` in NFC with single spaces and none at the ends; the ranker receives this form, too.

    A lone surrogate, which JSON can encode but UTF-8 cannot, becomes a replacement character.
    """
    return " ".join(unicodedata.normalize("NFC", without_lone_surrogates(query)).split())


def cache_key(scope: RankingScope, normalized_query: str) -> str:
    """A short key, equal exactly for equal scope and query."""
    # 160 bits: two of a billion rankings share a key with a chance below 1e-30. The number in the prefix is the format
    # of the key and of what Redis holds under it.
    digest = hashlib.blake2b(orjson.dumps([*scope, normalized_query]), digest_size=20)
    return f"searchrl:ranking:1:{digest.hexdigest()}"


def build_memory_cache(max_entries: int, max_bytes: int = 1 << 28) -> LruCache[str, RankedRows]:
    """Build the cache in memory: up to ``max_entries`` rankings in up to ``max_bytes``; 0 for either disables it."""
    return LruCache(
        max_entries,
        max_bytes=max_bytes,
        size_of=lambda ranking: _BYTES_PER_RANKING + _BYTES_PER_RESULT * len(ranking.rows),
    )


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
