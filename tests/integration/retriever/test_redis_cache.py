"""The cache of rankings in a real Redis: shared by replicas, and harmless if Redis is slow, dies or comes back."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from searchrl.errors import ConfigurationError
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows
from services.retriever.serving.redis_cache import CacheSettings, RedisCache
from tests.integration.retriever.conftest import RedisServer, RetrieverProcess, wait_until

StartRedis = Callable[[], RedisServer]
PASSAGES = 4  # in the index: a cached ranking with row 4 or above is garbage
RANKING = RankedRows([3, 1], [2.5, 1.25])
QUERY = "How many career sacks did Jared Allen have?"


@pytest.fixture
def metrics() -> RetrieverMetrics:
    return RetrieverMetrics(CollectorRegistry())


def make_cache(
    url: str, metrics: RetrieverMetrics, timeout_seconds: float = 0.05, probe_seconds: float = 1.0
) -> RedisCache:
    settings = CacheSettings(
        redis_url=SecretStr(url),
        redis_timeout_milliseconds=timeout_seconds * 1000,
        redis_probe_seconds=probe_seconds,
    )
    return RedisCache(settings, metrics)


async def put_and_wait(cache: RedisCache, key: str) -> None:
    cache.put_many({key: RANKING})
    async with asyncio.timeout(10):
        while not await cache.get_many([key], PASSAGES):
            await asyncio.sleep(0.005)


async def available(cache: RedisCache) -> None:
    async with asyncio.timeout(20):
        while not cache.is_available:
            await asyncio.sleep(0.005)


async def test_a_ranking_written_by_one_replica_is_found_by_another(
    start_redis: StartRedis, metrics: RetrieverMetrics
) -> None:
    url = start_redis().url
    writer, reader = make_cache(url, metrics, timeout_seconds=2), make_cache(url, metrics, timeout_seconds=2)
    await writer.start()
    await reader.start()
    await put_and_wait(writer, "k")
    assert await reader.get_many(["missing", "k"], PASSAGES) == {"k": RANKING}
    await writer.close()
    await reader.close()


async def test_a_redis_that_stops_answering_delays_one_request_by_its_timeout_only(
    start_redis: StartRedis, metrics: RetrieverMetrics
) -> None:
    server = start_redis()
    cache = make_cache(server.url, metrics, timeout_seconds=0.05, probe_seconds=0.1)
    await cache.start()
    await available(cache)
    server.pause()
    started = time.monotonic()
    assert await cache.get_many(["k"], PASSAGES) == {}
    first = time.monotonic() - started
    started = time.monotonic()
    for _ in range(100):
        assert await cache.get_many(["k"], PASSAGES) == {}
    others = time.monotonic() - started
    assert first < 0.5  # the timeout of 0.05 s, with margin for a busy machine
    assert others < 0.05
    server.resume()
    await available(cache)
    await cache.close()


async def test_a_stopped_redis_is_bypassed_and_used_again_after_its_restart(
    start_redis: StartRedis, metrics: RetrieverMetrics
) -> None:
    server = start_redis()
    cache = make_cache(server.url, metrics, timeout_seconds=1, probe_seconds=0.05)
    await cache.start()
    await put_and_wait(cache, "k")
    server.kill()
    assert await cache.get_many(["k"], PASSAGES) == {}
    assert not cache.is_available
    cache.put_many({"k2": RANKING})  # dropped without an error
    start_redis()
    await available(cache)
    await put_and_wait(cache, "k3")
    await cache.close()


async def test_an_unreachable_redis_does_not_delay_searches(tmp_path: Path, metrics: RetrieverMetrics) -> None:
    cache = make_cache(f"unix://{tmp_path}/nowhere.sock", metrics)
    await cache.start()
    started = time.monotonic()
    assert await cache.get_many(["k"], PASSAGES) == {}
    assert time.monotonic() - started < 0.01
    await cache.close()


def test_searches_continue_while_redis_stops_and_restarts(
    start_redis: StartRedis, start_retriever: Callable[..., RetrieverProcess], bm25_index: Path, http: httpx.Client
) -> None:
    server = start_redis()
    options = {
        "RETRIEVER_CACHE__REDIS_URL": server.url,
        "RETRIEVER_CACHE__REDIS_TIMEOUT_MILLISECONDS": "500",
        "RETRIEVER_CACHE__REDIS_PROBE_SECONDS": "0.1",
    }
    first, second = start_retriever(bm25_index, **options), start_retriever(bm25_index, **options)

    def search(retriever: RetrieverProcess, query: str) -> list[str]:
        answer = http.post(f"{retriever.http}/v1/search", json={"queries": [query], "top_k": 1})
        assert answer.status_code == 200
        return [hit["passage"]["id"] for hit in answer.json()["queries"][0]["results"]]

    def metrics_of(retriever: RetrieverProcess) -> str:
        return http.get(f"{retriever.http}/metrics").text

    def metric(retriever: RetrieverProcess, line: str) -> bool:
        return line in metrics_of(retriever)

    wait_until(lambda: metric(first, "searchrl_retriever_redis_available 1.0"), "Redis", first.log)
    wait_until(lambda: metric(second, "searchrl_retriever_redis_available 1.0"), "Redis", second.log)
    attempts = itertools.count()

    def is_shared() -> bool:
        query = f"{QUERY} {next(attempts)} times"
        assert search(first, query) == search(second, query) == ["0"]
        return 'searchrl_retriever_cache_lookups_total{layer="redis",result="hit"} 0.0' not in metrics_of(second)

    wait_until(is_shared, "the second replica to find what the first has written", second.log)
    server.kill()
    for number in range(20):
        assert search(first, f"{QUERY} {number}") == ["0"]
    assert metric(first, "searchrl_retriever_redis_available 0.0")
    start_redis()
    wait_until(lambda: metric(first, "searchrl_retriever_redis_available 1.0"), "Redis to be found again", first.log)
    assert search(first, f"{QUERY} after") == ["0"]


async def test_garbage_is_a_miss_and_is_overwritten(start_redis: StartRedis, metrics: RetrieverMetrics) -> None:
    url = start_redis().url
    cache = make_cache(url, metrics, timeout_seconds=2)
    await cache.start()
    await available(cache)
    garbage = [b"garbage", b"{}", b"[1]", b"[[1],[2.0],3]", b'[["a"],[1.0]]', b"[[4],[1.0]]", b"[[-1],[1.0]]",
               b"[[1,2],[1.0]]", b"[[1],[null]]", b"[[true],[1.0]]", b"\xff", b"", b"[1,2]"]  # fmt: skip
    async with redis.asyncio.Redis.from_url(url) as other:
        for number, value in enumerate(garbage):
            await other.set(f"k{number}", value)
    keys = [f"k{number}" for number in range(len(garbage))]
    assert await cache.get_many(keys, PASSAGES) == {}
    assert cache.is_available and metrics.cache_errors._value.get() == len(garbage)
    await put_and_wait(cache, "k0")
    assert await cache.get_many(keys, PASSAGES) == {"k0": RANKING}
    await cache.close()


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b":5\r\n", b"*-1\r\n", b"*2\r\n+a\r\n+b\r\n", b"$abc\r\n", b"$-5\r\n", b"-MOVED\r\n", b"_\r\n",
     b"-NOAUTH\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\r\n", b"$3\r\nabcde"],
)  # fmt: skip
async def test_another_server_at_the_address_of_redis_fails_no_search(reply: bytes, metrics: RetrieverMetrics) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                writer.write(reply)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    cache = make_cache(f"redis://127.0.0.1:{port}", metrics, timeout_seconds=0.2, probe_seconds=0.01)
    await cache.start()
    cache._is_available = True  # whatever the probe found
    assert await cache.get_many(["a", "b", "c"], PASSAGES) == {}
    cache._is_available = True
    cache.put_many({"k": RANKING})
    async with asyncio.timeout(10):
        while cache._writes.qsize():
            await asyncio.sleep(0.005)
    assert not any(task.done() for task in cache._tasks)
    await cache.close()
    server.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "Redis URL must specify"),
        ("redis://h:port/0", "Port could not be cast"),
        ("redis://h?db=x", "Invalid value for 'db'"),
        ("redis://h?time_out=1", "time_out"),
        ("rediss://h?ssl_cert_reqs=some", "some"),
        ("redis://h?retry=1", "str"),
    ],
)
def test_an_invalid_address_stops_the_start_with_one_sentence(url: str, reason: str, metrics: RetrieverMetrics) -> None:
    with pytest.raises(ConfigurationError, match=rf"cache\.redis_url: .*{reason}"):
        make_cache(url, metrics)
