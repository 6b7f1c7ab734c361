"""Validates, caches and batches searches, and switches index generations; both transports call it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from searchrl.domain.passage import Passage, SearchResult
from searchrl.errors import OUTAGE_KINDS, DeadlineExceeded, ErrorKind, InvalidRequest, TooLarge, Unavailable
from searchrl.platform.request_context import remaining_seconds
from searchrl.platform.tracing import span
from services.retriever.batching.fair_queue import BatchKey, Ranking, RankingFailure
from services.retriever.batching.query_batcher import QueryBatcher
from services.retriever.caching.cache_key import RankingScope, cache_key, normalize_query
from services.retriever.caching.ranking_cache import RankingCache
from services.retriever.indexes.active_index import ActiveIndex
from services.retriever.indexes.build_jobs import BuildJobs
from services.retriever.indexes.build_process import BuildStep, IndexBuild
from services.retriever.indexes.generation import Generation
from services.retriever.indexes.index_store import IndexStore
from services.retriever.indexes.manifest import Kind, Manifest
from services.retriever.indexes.ranked_rows import RankedRows
from services.retriever.metrics import RetrieverMetrics

MODES = ("bm25", "dense", "hybrid")
Fetched = TypeVar("Fetched")


@dataclass(frozen=True)
class SearchLimits:
    """Limits of one request. ``default_top_k`` is that of Search-R1's server.

    ``max_results`` is ten results for each of ``max_queries``: the entire answer is held in memory, so a request
    for 4,096 queries of 100 results each is refused.
    """

    default_top_k: int = 3
    max_top_k: int = 100
    max_queries: int = 4096
    max_results: int = 40_960
    max_query_characters: int = 4096
    max_ids: int = 4096


class QueryOutcome(NamedTuple):
    """One query's results, or why it failed."""

    results: Sequence[SearchResult]
    failure: RankingFailure | None


class SearchAnswer(NamedTuple):
    """One outcome per query, in request order, and the generation that gave them."""

    generation: str
    outcomes: Sequence[QueryOutcome]


class RetrievedRow(NamedTuple):
    """A row of the corpus as it was given, and its score."""

    document: Mapping[str, object]
    score: float


class RetrievedRows(NamedTuple):
    """One query's rows, or why it failed."""

    rows: Sequence[RetrievedRow]
    failure: RankingFailure | None


@dataclass(frozen=True)
class BuildRules:
    """Which corpora may be indexed over the network, and with which further arguments.

    Attributes:
        corpus_root: corpora must lie under this folder; None allows any.
        dense_options: arguments for kinds with vectors, such as the encoder's folder.
    """

    corpus_root: Path | None = None
    dense_options: Sequence[str] = ()


class SearchService:
    """Validates, caches and batches searches, and switches between index generations.

    Its methods run in the event loop; ranking runs in the batcher's thread, and passages are read in reader threads.
    Each request takes its generation once and uses it to the end, so a swap in the meantime does not affect it.
    """

    def __init__(
        self,
        index: ActiveIndex,
        store: IndexStore,
        batcher: QueryBatcher,
        cache: RankingCache,
        metrics: RetrieverMetrics,
        limits: SearchLimits,
        build_rules: BuildRules,
    ) -> None:
        self._index = index
        self._store = store
        self._batcher = batcher
        self._cache = cache
        self._metrics = metrics
        self._limits = limits
        self._build_rules = build_rules
        self._builds = BuildJobs(store.folder, index.activate)
        # Two: parsing rows holds the interpreter lock, so more threads would not read faster; with one thread, a small
        # request would wait for a large one.
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="passage-reader")

    async def search(
        self, queries: Sequence[str], top_k: int | None, mode: str, filters: Mapping[str, str]
    ) -> SearchAnswer:
        """Return up to ``top_k`` passages per query, best first. Each query succeeds or fails by itself.

        Raises:
            InvalidRequest: ``top_k`` or ``mode`` is out of bounds.
            TooLarge: too many queries, or too many results in all.
            Overloaded: the queue is full.
            DeadlineExceeded: the request's deadline passed.
            Unavailable: no index is in service, or none of the queries could be ranked.
        """
        generation = self._index.get()
        rankings = await self._rank(generation, queries, top_k, mode, filters)
        outages = _outages(rankings)
        if outages and len(outages) == len(rankings):
            raise Unavailable(f"none of the {len(outages)} queries could be ranked: {outages[0].message}")
        passage = generation.passages.passage

        def read(ranked: RankedRows) -> list[SearchResult]:
            pairs = zip(ranked.rows, ranked.scores, strict=True)
            return [SearchResult(passage(row), score, rank) for rank, (row, score) in enumerate(pairs, start=1)]

        return SearchAnswer(generation.id, [QueryOutcome(*part) for part in await self._fetch(rankings, read)])

    async def retrieve(self, queries: Sequence[str], top_k: int | None) -> list[RetrievedRows]:
        """Like ``search`` in the index's default mode, but return the corpus's rows as they were given.

        Callers read the rows only, so a query that could not be ranked must not look like one that found nothing: it
        fails the entire request, which these clients retry.

        Raises:
            Unavailable: a query could not be ranked; otherwise as ``search``.
        """
        generation = self._index.get()
        rankings = await self._rank(generation, queries, top_k, "", {})
        if outages := _outages(rankings):
            raise Unavailable(f"{len(outages)} of {len(rankings)} queries could not be ranked: {outages[0].message}")
        row = generation.passages.row

        def read(ranked: RankedRows) -> list[RetrievedRow]:
            pairs = zip(ranked.rows, ranked.scores, strict=True)
            return [RetrievedRow(row(number).document, score) for number, score in pairs]

        return [RetrievedRows(*part) for part in await self._fetch(rankings, read)]

    async def get_passages(self, ids: Sequence[str]) -> tuple[list[Passage], list[str], str]:
        """The passages with these ids in order, the ids that do not exist, and the index generation asked.

        Raises:
            TooLarge: too many ids.
            Unavailable: no index is in service.
        """
        if len(ids) > self._limits.max_ids:
            raise TooLarge(f"{len(ids)} ids in one request; the limit is {self._limits.max_ids}")
        generation = self._index.get()
        find = generation.passages.find
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._readers, lambda: [find(id) for id in ids])
        missing = [id for id, passage in zip(ids, found, strict=True) if passage is None]
        return [passage for passage in found if passage is not None], missing, generation.id

    def list_indexes(self) -> list[tuple[Manifest, bool]]:
        """All complete generations, oldest first, and whether each is the one in service."""
        active = self._index.get().id if self._index.is_loaded else None
        return [(manifest, manifest.generation == active) for manifest in self._store.list()]

    def interrupted_build(self) -> str:
        """One sentence about the last build if it was killed before completion; empty otherwise."""
        return self._store.interrupted_build()

    async def activate_index(self, generation: str) -> Manifest:
        """Put a generation in service and make it the current one; see ``ActiveIndex.activate``."""
        return await self._index.activate(generation)

    async def build_index(self, corpus: str, kind: str, activate: bool) -> AsyncIterator[BuildStep]:
        """Build a generation in a separate process and yield its progress.

        The build continues when the caller disconnects; the same request joins it again.

        Raises:
            InvalidRequest: unknown kind, or a corpus that is unusable or outside the allowed folder.
            Conflict: another build is running.
        """
        async with aclosing(self._builds.follow(self._plan(corpus, kind), activate)) as steps:
            async for step in steps:
                yield step

    def close(self) -> None:
        """Stop the threads and the running build; searches still waiting fail as unavailable."""
        self._builds.close()
        self._batcher.close()
        self._readers.shutdown(wait=False)

    def _plan(self, corpus: str, kind: str) -> IndexBuild:
        if kind not in MODES:
            raise InvalidRequest(f"unknown kind '{kind}'; known: {', '.join(MODES)}")
        path = Path(corpus).resolve()
        root = self._build_rules.corpus_root
        if root is not None and not path.is_relative_to(root.resolve()):
            raise InvalidRequest(f"corpora must be under {root}")
        if not corpus or not path.is_file():
            raise InvalidRequest(f"there is no corpus file '{corpus}'")
        chosen: Kind = "bm25" if kind == "bm25" else "dense" if kind == "dense" else "hybrid"
        return IndexBuild(path, chosen, () if chosen == "bm25" else self._build_rules.dense_options)

    async def _rank(
        self, generation: Generation, queries: Sequence[str], top_k: int | None, mode: str, filters: Mapping[str, str]
    ) -> list[Ranking]:
        """One ranking per query, in request order; empty queries fail here, without affecting the others.

        Equal queries of one request share a cache key, so they are looked up and ranked once.
        """
        scope = self._scope(generation, len(queries), top_k, mode, filters)
        refused = {query: failure for query in set(queries) if (failure := _find_fault(query))}
        longest = self._limits.max_query_characters
        normalized = {query: normalize_query(query[:longest]) for query in queries if query not in refused}
        key_of = {query: cache_key(scope, text) for query, text in normalized.items()}
        text_of = {key_of[query]: text for query, text in normalized.items()}
        key = BatchKey(scope.generation, scope.mode, scope.top_k, scope.filters)
        deadline_seconds = remaining_seconds()
        rank = partial(
            self._batcher.submit, key=key, ranker=generation.rankers[scope.mode], deadline_seconds=deadline_seconds
        )
        try:
            with span("rank", {"searchrl.queries": len(queries), "searchrl.mode": scope.mode}):
                async with asyncio.timeout(deadline_seconds):
                    found = await self._cache.get_or_compute(text_of, rank, len(generation.passages))
        except TimeoutError as error:
            self._metrics.rejected.labels(kind=ErrorKind.DEADLINE.value).inc()
            raise DeadlineExceeded("the request's deadline passed before all its queries were ranked") from error
        rankings = [refused.get(query) or found[key_of[query]] for query in queries]
        self._count(scope.mode, rankings, len([query for query in queries if query in refused]))
        return rankings

    def _scope(
        self, generation: Generation, count: int, top_k: int | None, mode: str, filters: Mapping[str, str]
    ) -> RankingScope:
        """Check a request against the limits and fill in its defaults.

        Raises:
            InvalidRequest, TooLarge: as ``search``.
        """
        limits = self._limits
        if count > limits.max_queries:
            raise TooLarge(f"{count} queries in one request; the limit is {limits.max_queries}")
        chosen = limits.default_top_k if top_k is None else top_k
        if not 1 <= chosen <= limits.max_top_k:
            raise InvalidRequest(f"top_k must be in 1..{limits.max_top_k}, got {chosen}")
        if count * chosen > limits.max_results:
            raise TooLarge(
                f"{count} queries with {chosen} results each are {count * chosen} results in one request; the limit is "
                f"{limits.max_results}"
            )
        mode = mode or generation.default_mode
        if mode not in generation.rankers:
            known = ", ".join(generation.rankers)
            raise InvalidRequest(f"the index in service has no mode '{mode}'; it has: {known}")
        return RankingScope(generation.id, generation.model_key, mode, chosen, tuple(sorted(filters.items())))

    async def _fetch(
        self, rankings: Sequence[Ranking], read: Callable[[RankedRows], list[Fetched]]
    ) -> list[tuple[list[Fetched], RankingFailure | None]]:
        """Read rows in a reader thread: a page of the mapped file may have to come from disk."""

        def read_all() -> list[tuple[list[Fetched], RankingFailure | None]]:
            return [
                ([], ranking) if isinstance(ranking, RankingFailure) else (read(ranking), None) for ranking in rankings
            ]

        with self._metrics.stage_seconds.labels(stage="fetch").time(), span("fetch"):
            return await asyncio.get_running_loop().run_in_executor(self._readers, read_all)

    def _count(self, mode: str, rankings: Sequence[Ranking], refused: int) -> None:
        failed = sum(isinstance(ranking, RankingFailure) for ranking in rankings)
        outcomes = {"ok": len(rankings) - failed, "invalid": refused, "failed": failed - refused}
        for outcome, count in outcomes.items():
            self._metrics.queries.labels(mode=mode, outcome=outcome).inc(count)


def _find_fault(query: str) -> RankingFailure | None:
    """Why ``query`` cannot be ranked; None if it can."""
    return None if query.strip() else RankingFailure(ErrorKind.INVALID, "the query is empty")


def _outages(rankings: Sequence[Ranking]) -> list[RankingFailure]:
    """The failures that the retriever caused, not the caller."""
    return [found for found in rankings if isinstance(found, RankingFailure) and found.kind in OUTAGE_KINDS]
