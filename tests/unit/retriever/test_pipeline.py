"""The stages of a search: what is cached, that equal queries are ranked once, first stages and their fusion.

The first caller of a query ranks it, later ones await its result. ``await asyncio.sleep(0)`` lets a caller that was
just created get that far.
"""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.errors import Overloaded
from services.retriever.metrics import RetrieverMetrics
from services.retriever.pipeline import SearchPipeline, build_memory_cache, cache_key, normalize_query, rank_and_fuse
from services.retriever.ranking import RankedRows, RankingScope
from services.retriever.serving.redis_cache import CacheSettings
from tests.fakes.scripted_batcher import BAD, SCOPE, ScriptedBatcher, build_pipeline, rank


@pytest.fixture
def batcher() -> ScriptedBatcher:
    return ScriptedBatcher()


@pytest.fixture
def pipeline(batcher: ScriptedBatcher, metrics: RetrieverMetrics) -> SearchPipeline:
    return build_pipeline(batcher, metrics, CacheSettings(memory_entries=100))


async def test_a_ranking_is_cached(pipeline: SearchPipeline, batcher: ScriptedBatcher) -> None:
    assert await rank(pipeline, "a", "bb") == {"a": RankedRows([1], [1.0]), "bb": RankedRows([2], [1.0])}
    assert await rank(pipeline, "bb", "ccc") == {"bb": RankedRows([2], [1.0]), "ccc": RankedRows([3], [1.0])}
    assert batcher.asked == [["a", "bb"], ["ccc"]]


async def test_a_failure_is_not_cached(pipeline: SearchPipeline, batcher: ScriptedBatcher) -> None:
    for _ in range(2):
        assert await rank(pipeline, "bad") == {"bad": BAD}
    assert batcher.asked == [["bad"], ["bad"]]


async def test_equal_queries_in_flight_are_ranked_once(pipeline: SearchPipeline, batcher: ScriptedBatcher) -> None:
    batcher.gate.clear()
    callers = [asyncio.create_task(rank(pipeline, "a", f"own {n}")) for n in range(5)]
    await asyncio.sleep(0)
    batcher.gate.set()
    for number, answer in enumerate(await asyncio.gather(*callers)):
        assert answer == {"a": RankedRows([1], [1.0]), f"own {number}": RankedRows([5], [1.0])}
    assert sum(asked.count("a") for asked in batcher.asked) == 1


async def test_a_cancelled_caller_does_not_cancel_those_that_wait_for_its_query(
    pipeline: SearchPipeline, batcher: ScriptedBatcher
) -> None:
    batcher.gate.clear()
    first = asyncio.create_task(rank(pipeline, "a"))
    await asyncio.sleep(0)
    second = asyncio.create_task(rank(pipeline, "a"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    batcher.gate.set()
    assert await second == {"a": RankedRows([1], [1.0])}
    assert batcher.asked == [["a"], ["a"]]


async def test_a_failing_caller_fails_alone(pipeline: SearchPipeline, batcher: ScriptedBatcher) -> None:
    batcher.gate.clear()
    first = asyncio.create_task(rank(pipeline, "a"))
    await asyncio.sleep(0)
    second = asyncio.create_task(rank(pipeline, "a"))
    await asyncio.sleep(0)
    batcher.errors.append(Overloaded())
    batcher.gate.set()
    with pytest.raises(Overloaded):
        await first
    assert await second == {"a": RankedRows([1], [1.0])}


def test_the_least_recently_used_ranking_is_evicted_first() -> None:
    memory = build_memory_cache(2)
    entries = {key: RankedRows([number], [1.0]) for number, key in enumerate("abc")}
    memory.put("a", entries["a"])
    memory.put("b", entries["b"])
    memory.get("a")
    memory.put("c", entries["c"])
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (entries["a"], None, entries["c"])


def test_a_memory_cache_of_size_zero_keeps_nothing() -> None:
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


def test_normalizing_keeps_case_and_words() -> None:
    assert normalize_query(" Who  is\tShe? ") == "Who is She?"


class FixedRanker:
    def __init__(self, rows: list[int]) -> None:
        self._rows = rows
        self.asked_for = 0

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        self.asked_for = top_k
        return [RankedRows(self._rows, [1.0] * len(self._rows)) for _ in queries]


def test_fused_first_stages_look_deeper_than_the_results_they_return() -> None:
    lexical, dense = FixedRanker([1, 2, 3]), FixedRanker([4, 5, 3])
    ranked = rank_and_fuse([lexical, dense], ["a", "b"], 1, {})
    assert [hits.rows for hits in ranked] == [[3], [3]]
    assert lexical.asked_for == dense.asked_for == 100


def test_a_single_first_stage_keeps_its_depth_and_scores() -> None:
    lexical = FixedRanker([2, 1])
    assert rank_and_fuse([lexical], ["a"], 2, {}) == [RankedRows([2, 1], [1.0, 1.0])]
    assert lexical.asked_for == 2
