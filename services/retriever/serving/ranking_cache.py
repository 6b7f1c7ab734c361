"""Looks rankings up in memory, then in Redis, then among the queries that are being ranked right now.

Equal queries in flight are ranked once (single flight): the first caller ranks and shares a future, the others wait for
it. Everything runs in the event loop, so the dictionaries need no lock; only an ``await`` lets another caller in.
"""

import asyncio
import hashlib
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence

import orjson

from searchrl.platform.json_text import without_lone_surrogates
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows, Ranking, RankingScope
from services.retriever.serving.redis_cache import CacheSettings, RedisCache

# Measured with sys.getsizeof on CPython 3.11: key, tuple, two lists and the entry; then a row number, a score and their
# two references.
_BYTES_PER_RANKING = 400
_BYTES_PER_RESULT = 76

Compute = Callable[[Sequence[str]], Awaitable[Sequence[Ranking]]]


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


class MemoryCache:
    """Up to ``max_entries`` rankings in up to ``max_bytes``; 0 for either disables it. Used in the event loop only."""

    def __init__(self, max_entries: int, max_bytes: int = 1 << 28) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, RankedRows] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> RankedRows | None:
        """The ranking under ``key``, now the most recently used."""
        ranking = self._entries.get(key)
        if ranking is not None:
            self._entries.move_to_end(key)
        return ranking

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, ranking: RankedRows) -> int:
        """Store a ranking; return how many were evicted for it."""
        if (old := self._entries.get(key)) is not None:
            self.bytes -= _size_of(old)
        self._entries[key] = ranking
        self._entries.move_to_end(key)
        self.bytes += _size_of(ranking)
        evicted = 0
        while self._entries and (len(self._entries) > self._max_entries or self.bytes > self._max_bytes):
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _size_of(oldest)
            evicted += 1
        return evicted


class RankingCache:
    """Finds rankings by key; a missing one is computed once, however many callers wait for it."""

    def __init__(self, settings: CacheSettings, shared: RedisCache | None, metrics: RetrieverMetrics) -> None:
        self._memory = MemoryCache(settings.memory_entries, settings.memory_megabytes << 20)
        self._shared = shared
        self._metrics = metrics
        self._flights: dict[str, asyncio.Future[Ranking]] = {}

    async def get_or_compute(
        self, query_by_key: Mapping[str, str], compute: Compute, passages: int
    ) -> dict[str, Ranking]:
        """Rankings for all keys; ``compute`` is called with the queries that are neither cached nor being ranked.

        ``passages`` is the size of the corpus: row numbers from Redis must lie within it. If the caller that ranks a
        query fails or is cancelled, those that waited for it rank the query themselves.
        """
        with self._metrics.stage_seconds.labels(stage="cache").time():
            found: dict[str, Ranking] = dict(await self._look_up(list(query_by_key), passages))
        missing = {key: query for key, query in query_by_key.items() if key not in found}
        while missing:
            in_flight = {key: self._flights[key] for key in missing if key in self._flights}
            to_compute = {key: query for key, query in missing.items() if key not in in_flight}
            if to_compute:
                found.update(await self._compute_and_share(to_compute, compute))
            if in_flight:
                found.update(await self._wait_for_others(in_flight))
            missing = {key: query for key, query in missing.items() if key not in found}
        return found

    async def _look_up(self, keys: Sequence[str], passages: int) -> dict[str, RankedRows]:
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

    async def _compute_and_share(self, to_compute: Mapping[str, str], compute: Compute) -> dict[str, Ranking]:
        """Rank ``to_compute``, and share the results with callers that wait for the same keys."""
        # The flights are registered before the first await, so that no second caller ranks one of these keys.
        loop = asyncio.get_running_loop()
        flights: dict[str, asyncio.Future[Ranking]] = {key: loop.create_future() for key in to_compute}
        self._flights |= flights
        try:
            rankings = dict(zip(to_compute, await compute(list(to_compute.values())), strict=True))
            for key, flight in flights.items():
                flight.set_result(rankings[key])
        finally:
            for key, flight in flights.items():
                del self._flights[key]
                flight.cancel()  # after a failure the waiting callers see this and retry; no effect on a set result
        for key, ranking in rankings.items():
            if isinstance(ranking, RankedRows):
                self._remember(key, ranking)
        if self._shared is not None:
            self._shared.put_many({key: found for key, found in rankings.items() if isinstance(found, RankedRows)})
        return rankings

    async def _wait_for_others(self, in_flight: Mapping[str, "asyncio.Future[Ranking]"]) -> dict[str, Ranking]:
        """Wait for rankings of other callers; those of a caller that failed are left out."""
        self._metrics.shared_flights.inc(len(in_flight))
        await asyncio.wait(in_flight.values())
        return {key: flight.result() for key, flight in in_flight.items() if not flight.cancelled()}

    def _remember(self, key: str, ranking: RankedRows) -> None:
        self._metrics.cache_evictions.inc(self._memory.put(key, ranking))
        self._metrics.cache_entries.set(len(self._memory))
        self._metrics.cache_bytes.set(self._memory.bytes)

    def _count(self, layer: str, hits: int, misses: int) -> None:
        self._metrics.cache_lookups.labels(layer=layer, result="hit").inc(hits)
        self._metrics.cache_lookups.labels(layer=layer, result="miss").inc(misses)


def _size_of(ranking: RankedRows) -> int:
    return _BYTES_PER_RANKING + _BYTES_PER_RESULT * len(ranking.rows)
