"""Looks rankings up in memory, then in Redis, then among the queries that are being ranked right now.

Everything runs in the event loop.
"""

import hashlib
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence

import orjson

from searchrl.platform.caches import BatchFlight, LruCache
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


def build_memory_cache(max_entries: int, max_bytes: int = 1 << 28) -> LruCache[str, RankedRows]:
    """Build the cache in memory: up to ``max_entries`` rankings in up to ``max_bytes``; 0 for either disables it."""
    return LruCache(
        max_entries,
        max_bytes=max_bytes,
        size_of=lambda ranking: _BYTES_PER_RANKING + _BYTES_PER_RESULT * len(ranking.rows),
    )


class RankingCache:
    """Finds rankings by key; a missing one is computed once, however many callers wait for it.

    All callers receive the same ``RankedRows`` object, so nobody may change its lists.
    """

    def __init__(self, settings: CacheSettings, shared: RedisCache | None, metrics: RetrieverMetrics) -> None:
        self._memory = build_memory_cache(settings.memory_entries, settings.memory_megabytes << 20)
        self._shared = shared
        self._metrics = metrics
        self._flights: BatchFlight[str, Ranking] = BatchFlight(metrics.shared_flights.inc)

    async def get_or_compute(
        self, query_by_key: Mapping[str, str], compute: Compute, passages: int
    ) -> dict[str, Ranking]:
        """Rankings for all keys; ``compute`` is called with the queries that are neither cached nor being ranked.

        ``passages`` is the size of the corpus: row numbers from Redis must lie within it. If the caller that ranks a
        query fails or is cancelled, those that waited for it rank the query themselves.
        """
        with self._metrics.stage_seconds.labels(stage="cache").time():
            found: dict[str, Ranking] = dict(await self._look_up(list(query_by_key), passages))

        async def rank(keys: Sequence[str]) -> Sequence[Ranking]:
            rankings = dict(zip(keys, await compute([query_by_key[key] for key in keys]), strict=True))
            self._keep(rankings)
            return list(rankings.values())

        missing = [key for key in query_by_key if key not in found]
        return found | await self._flights.run(missing, rank)

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

    def _keep(self, rankings: Mapping[str, Ranking]) -> None:
        # Failures are not kept: they would outlast what caused them, e.g. a GPU that ran out of memory for a moment.
        complete = {key: found for key, found in rankings.items() if isinstance(found, RankedRows)}
        for key, ranking in complete.items():
            self._remember(key, ranking)
        if self._shared is not None:
            self._shared.put_many(complete)

    def _remember(self, key: str, ranking: RankedRows) -> None:
        self._metrics.cache_evictions.inc(self._memory.put(key, ranking))
        self._metrics.cache_entries.set(len(self._memory))
        self._metrics.cache_bytes.set(self._memory.bytes)

    def _count(self, layer: str, hits: int, misses: int) -> None:
        self._metrics.cache_lookups.labels(layer=layer, result="hit").inc(hits)
        self._metrics.cache_lookups.labels(layer=layer, result="miss").inc(misses)
