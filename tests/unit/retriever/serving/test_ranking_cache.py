"""The ranking cache: what is cached, and that equal queries in flight are ranked only once.

The first caller of a query ranks it, later ones await its result. ``await asyncio.sleep(0)`` lets a caller that was
just created get that far.
"""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.errors import ErrorKind, Overloaded
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows, Ranking, RankingFailure, RankingScope
from services.retriever.serving.ranking_cache import RankingCache, build_memory_cache, cache_key, normalize_query
from services.retriever.serving.redis_cache import CacheSettings

PASSAGES = 100  # in the index; no cached row reaches it
BAD = RankingFailure(ErrorKind.INTERNAL, "bad")
SCOPE = RankingScope("g1", "model", "bm25", 3, (("world", "w1"),))


class Backend:
    """Answers queries once its gate is open, and records them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[list[str]] = []
        self.error: Exception | None = None

    async def compute(self, queries: Sequence[str]) -> list[Ranking]:
        self.asked.append(list(queries))
        await self.gate.wait()
        if self.error:
            raise self.error
        return [BAD if query == "bad" else RankedRows([len(query)], [1.0]) for query in queries]


@pytest.fixture
def cache(metrics: RetrieverMetrics) -> RankingCache:
    return RankingCache(CacheSettings(memory_entries=100), None, metrics)


async def test_an_answer_is_remembered(cache: RankingCache) -> None:
    source = Backend()
    first = await cache.get_or_compute({"k1": "a", "k2": "bb"}, source.compute, PASSAGES)
    second = await cache.get_or_compute({"k2": "bb", "k3": "ccc"}, source.compute, PASSAGES)
    assert first == {"k1": RankedRows([1], [1.0]), "k2": RankedRows([2], [1.0])}
    assert second == {"k2": RankedRows([2], [1.0]), "k3": RankedRows([3], [1.0])}
    assert source.asked == [["a", "bb"], ["ccc"]]


async def test_a_failure_is_not_remembered(cache: RankingCache) -> None:
    source = Backend()
    for _ in range(2):
        assert await cache.get_or_compute({"k": "bad"}, source.compute, PASSAGES) == {"k": BAD}
    assert source.asked == [["bad"], ["bad"]]


async def test_equal_queries_in_flight_are_asked_once(cache: RankingCache) -> None:
    source = Backend()
    source.gate.clear()
    callers = [
        asyncio.create_task(cache.get_or_compute({"k": "a", f"own{n}": "b"}, source.compute, PASSAGES))
        for n in range(5)
    ]
    await asyncio.sleep(0)
    source.gate.set()
    for number, answer in enumerate(await asyncio.gather(*callers)):
        assert answer == {"k": RankedRows([1], [1.0]), f"own{number}": RankedRows([1], [1.0])}
    assert sum(asked.count("a") for asked in source.asked) == 1


async def test_a_caller_that_goes_away_does_not_take_the_others_along(cache: RankingCache) -> None:
    source = Backend()
    source.gate.clear()
    leader = asyncio.create_task(cache.get_or_compute({"k": "a"}, source.compute, PASSAGES))
    await asyncio.sleep(0)
    follower = asyncio.create_task(cache.get_or_compute({"k": "a"}, source.compute, PASSAGES))
    await asyncio.sleep(0)
    leader.cancel()
    await asyncio.wait([leader])
    source.gate.set()
    assert await follower == {"k": RankedRows([1], [1.0])}
    assert source.asked == [["a"], ["a"]]


async def test_a_failing_leader_fails_alone(cache: RankingCache) -> None:
    source = Backend()
    source.gate.clear()
    leader = asyncio.create_task(cache.get_or_compute({"k": "a"}, source.compute, PASSAGES))
    await asyncio.sleep(0)
    healthy = Backend()
    follower = asyncio.create_task(cache.get_or_compute({"k": "a"}, healthy.compute, PASSAGES))
    await asyncio.sleep(0)
    source.error = Overloaded()
    source.gate.set()
    with pytest.raises(Overloaded):
        await leader
    assert await follower == {"k": RankedRows([1], [1.0])}


def test_the_least_recently_used_entry_leaves_first() -> None:
    memory = build_memory_cache(2)
    entries = {key: RankedRows([number], [1.0]) for number, key in enumerate("abc")}
    memory.put("a", entries["a"])
    memory.put("b", entries["b"])
    memory.get("a")
    memory.put("c", entries["c"])
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (entries["a"], None, entries["c"])


def test_a_cache_of_size_zero_remembers_nothing() -> None:
    memory = build_memory_cache(0)
    memory.put("a", RankedRows([1], [1.0]))
    assert memory.get("a") is None


@pytest.mark.parametrize(
    "other",
    [
        SCOPE._replace(generation="g2"),
        SCOPE._replace(model="other"),
        SCOPE._replace(mode="dense"),
        SCOPE._replace(top_k=4),
        SCOPE._replace(filters=()),
        SCOPE._replace(filters=(("world", "w2"),)),
    ],
)
def test_everything_that_can_change_a_ranking_is_in_the_key(other: RankingScope) -> None:
    assert cache_key(SCOPE, "q") != cache_key(other, "q")


@given(st.text(max_size=30))
def test_normalizing_twice_changes_nothing(query: str) -> None:
    once = normalize_query(query)
    assert normalize_query(once) == once
    assert normalize_query(f"  {query}\n") == once


def test_case_and_words_are_kept() -> None:
    assert normalize_query(" Who  is\tShe? ") == "Who is She?"
