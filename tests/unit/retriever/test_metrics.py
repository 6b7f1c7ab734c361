"""The retriever's metrics of its cache and its index."""

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from services.retriever.metrics import RetrieverMetrics
from services.retriever.pipeline import build_memory_cache
from services.retriever.ranking import RankedRows
from services.retriever.serving.redis_cache import CacheSettings, RedisCache
from tests.fakes.scripted_batcher import ScriptedBatcher, build_pipeline, rank


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"searchrl_retriever_{name}", labels)


async def test_a_full_cache_counts_its_evictions() -> None:
    registry = CollectorRegistry()
    pipeline = build_pipeline(ScriptedBatcher(), RetrieverMetrics(registry), CacheSettings(memory_entries=2))
    await rank(pipeline, "a", "b", "c")
    assert value(registry, "cache_entries") == 2
    assert value(registry, "cache_evictions_total") == 1
    assert value(registry, "cache_bypasses_total") == 0  # without a Redis nothing is bypassed
    assert value(registry, "redis_configured") == 0


async def test_queries_that_redis_could_not_be_asked_for_are_bypasses() -> None:
    registry = CollectorRegistry()
    metrics = RetrieverMetrics(registry)
    settings = CacheSettings(memory_entries=10, redis_url=SecretStr("redis://127.0.0.1:9/0"), redis_probe_seconds=60)
    redis = RedisCache(settings, metrics)
    await redis.start()
    pipeline = build_pipeline(ScriptedBatcher(), metrics, settings, redis)
    await rank(pipeline, "a", "b")
    await rank(pipeline, "a", "c")
    await redis.close()
    assert value(registry, "redis_configured") == 1
    assert value(registry, "redis_available") == 0
    assert value(registry, "cache_bypasses_total") == 3  # the second "a" was in memory
    assert value(registry, "cache_lookups_total", layer="memory", result="hit") == 1


def test_a_cache_that_is_switched_off_evicts_at_once() -> None:
    cache = build_memory_cache(0)
    assert cache.put("a", RankedRows([1], [0.5])) == 1
    assert len(cache) == 0


def test_a_cache_is_bounded_by_its_size_as_well_as_by_its_entries() -> None:
    cache = build_memory_cache(1000, 20_000)
    for number in range(100):
        cache.put(f"k{number % 60}", RankedRows(list(range(number)), [0.5] * number))
        assert cache.bytes <= 20_000
    assert 0 < len(cache) < 60 and cache.get("k39") is not None
    before = cache.bytes
    cache.put("k39", RankedRows([1], [0.5]))
    assert cache.bytes < before


@pytest.mark.parametrize("name", ["queue_depth_queries", "index_passages", "index_created_timestamp_seconds"])
def test_gauges_are_exported_before_the_first_event(name: str) -> None:
    registry = CollectorRegistry()
    RetrieverMetrics(registry)
    assert value(registry, name) == 0
