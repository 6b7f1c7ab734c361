"""A query batcher that answers without an index, and the smallest pipeline around it."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from searchrl.errors import ErrorKind
from services.retriever.metrics import RetrieverMetrics
from services.retriever.pipeline import SearchPipeline
from services.retriever.ranking import RankedRows, Ranking, RankingFailure, RankingScope
from services.retriever.serving.redis_cache import CacheSettings, RedisCache

SCOPE = RankingScope("g1", "model", "bm25", 3, (("world", "w1"),))
# A pipeline reads these two of a generation; no row of a ranking reaches the number of passages.
GENERATION: Any = SimpleNamespace(first_stages={"bm25": ()}, passages=range(100))
BAD = RankingFailure(ErrorKind.INTERNAL, "bad")


class ScriptedBatcher:
    """Answers queries once its gate is open, and records them. "bad" fails alone; ``errors`` fail entire calls."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[list[str]] = []
        self.errors: list[Exception] = []

    async def submit(
        self, queries: Sequence[str], scope: RankingScope, rank: object, deadline_seconds: float | None
    ) -> list[Ranking]:
        self.asked.append(list(queries))
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return [BAD if query == "bad" else RankedRows([len(query)], [1.0]) for query in queries]

    def close(self) -> None: ...


def build_pipeline(
    batcher: ScriptedBatcher, metrics: RetrieverMetrics, settings: CacheSettings, redis: RedisCache | None = None
) -> SearchPipeline:
    any_batcher: Any = batcher
    return SearchPipeline(settings, redis, any_batcher, metrics)


async def rank(pipeline: SearchPipeline, *queries: str) -> dict[str, Ranking]:
    """Rank queries of one scope."""
    return await pipeline.rank(GENERATION, SCOPE, queries)
