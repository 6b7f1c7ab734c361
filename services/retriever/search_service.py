"""Validates searches, passes them through the pipeline and fetches passages; both transports call it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

from pydantic import Field, PositiveInt

from searchrl.domain.passage import Passage, SearchResult
from searchrl.errors import OUTAGE_KINDS, ErrorKind, InvalidRequest, TooLarge, Unavailable
from searchrl.platform.settings import Section
from searchrl.platform.telemetry.tracing import span
from services.retriever.generations.build_jobs import BuildJobs, BuildStep
from services.retriever.generations.generation import Generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes.manifest import Manifest
from services.retriever.metrics import RetrieverMetrics
from services.retriever.pipeline import SearchPipeline, normalize_query
from services.retriever.ranking import RankedRows, Ranking, RankingFailure, RankingScope
from services.retriever.serving.active_index import ActiveIndex

MAX_IDS = 4096  # of a request for passages; as many as ``max_queries``


class SearchLimits(Section):
    """Limits of one request."""

    # That of Search-R1's server.
    default_top_k: PositiveInt = Field(default=3, description="Results per query if the request names no number.")
    max_top_k: PositiveInt = Field(default=100, description="Largest number of results per query.")
    max_queries: PositiveInt = Field(default=4096, description="Queries in one request.")
    # Ten results for each of the 4,096 queries: the entire answer is held in memory, so a request for 4,096 queries of
    # 100 results each is refused.
    max_results: PositiveInt = Field(default=40_960, description="Results in one request: queries times top_k.")
    # Longer than the 512 tokens that common encoders read, so that cutting rarely changes a dense ranking.
    max_query_characters: PositiveInt = Field(
        default=4096, description="Longer queries are cut to this number of characters."
    )


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


class SearchService:
    """Validates searches, passes them through the pipeline, and switches between index generations.

    Its methods run in the event loop. Each request takes its generation once and uses it to the end, so a swap in the
    meantime does not affect it.
    """

    def __init__(
        self,
        index: ActiveIndex,
        store: IndexStore,
        pipeline: SearchPipeline,
        builds: BuildJobs,
        metrics: RetrieverMetrics,
        limits: SearchLimits,
    ) -> None:
        self._index = index
        self._store = store
        self._pipeline = pipeline
        self._builds = builds
        self._metrics = metrics
        self._limits = limits

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

        return SearchAnswer(generation.id, [QueryOutcome(*part) for part in await self._pipeline.fetch(rankings, read)])

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

        return [RetrievedRows(*part) for part in await self._pipeline.fetch(rankings, read)]

    async def get_passages(self, ids: Sequence[str]) -> tuple[list[Passage], list[str], str]:
        """The passages with these ids in order, the ids that do not exist, and the index generation asked.

        Raises:
            TooLarge: too many ids.
            Unavailable: no index is in service.
        """
        if len(ids) > MAX_IDS:
            raise TooLarge(f"{len(ids)} ids in one request; the limit is {MAX_IDS}")
        generation = self._index.get()
        find = generation.passages.find
        found = await self._pipeline.run_in_reader(lambda: [find(id) for id in ids])
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
        async with aclosing(self._builds.follow(self._builds.plan(corpus, kind), activate)) as steps:
            async for step in steps:
                yield step

    def close(self) -> None:
        """Stop the threads and the running build; searches still waiting fail as unavailable."""
        self._builds.close()
        self._pipeline.close()

    async def _rank(
        self, generation: Generation, queries: Sequence[str], top_k: int | None, mode: str, filters: Mapping[str, str]
    ) -> list[Ranking]:
        """One ranking per query, in request order; empty queries fail here, without affecting the others.

        Queries that are equal once normalized are looked up and ranked once.
        """
        scope = self._validate(generation, len(queries), top_k, mode, filters)
        refused = {query: failure for query in set(queries) if (failure := _find_fault(query))}
        longest = self._limits.max_query_characters
        # Cut first: normalizing a text of megabytes would block the event loop.
        normalized = {query: normalize_query(query[:longest]) for query in queries if query not in refused}
        with span("rank", {"searchrl.queries": len(queries), "searchrl.mode": scope.mode}):
            found = await self._pipeline.rank(generation, scope, list(normalized.values()))
        # ``or`` is safe here: a RankingFailure has two fields, so it is never false.
        rankings = [refused.get(query) or found[normalized[query]] for query in queries]
        self._count(scope.mode, rankings, len([query for query in queries if query in refused]))
        return rankings

    def _validate(
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
        if mode not in generation.first_stages:
            known = ", ".join(generation.first_stages)
            raise InvalidRequest(f"the index in service has no mode '{mode}'; it has: {known}")
        return RankingScope(generation.id, generation.model_key, mode, chosen, tuple(sorted(filters.items())))

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
