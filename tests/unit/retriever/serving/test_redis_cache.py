"""How long a lookup and a write wait for a Redis that is slow; the integration tests use a real one."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows
from services.retriever.serving import redis_cache
from services.retriever.serving.redis_cache import CacheSettings, RedisCache

TIMEOUT_SECONDS = 0.2  # of a lookup; more than the default, because the machine of the test may be busy
REPLIES = {b"PING": b"+PONG\r\n", b"SET": b"+OK\r\n", b"MGET": b"*1\r\n$-1\r\n"}
RANKING = RankedRows([3, 1], [2.5, 1.25])


@asynccontextmanager
async def slow_redis(metrics: RetrieverMetrics, may_reply: asyncio.Event) -> AsyncGenerator[RedisCache, None]:
    """A cache with a closed breaker, whose server replies to lookups and writes once ``may_reply`` is set."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def read_word() -> bytes:
            size = int((await reader.readuntil())[1:])
            return (await reader.readexactly(size + 2))[:-2]

        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                words = [await read_word() for _ in range(int((await reader.readuntil())[1:]))]
                if words[0] in (b"SET", b"MGET"):
                    await may_reply.wait()
                writer.write(REPLIES.get(words[0], b"-ERR unknown command\r\n"))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?protocol=2"
    cache = RedisCache(
        CacheSettings(redis_url=SecretStr(url), redis_timeout_milliseconds=TIMEOUT_SECONDS * 1000), metrics
    )
    try:
        await cache._probe()
        assert cache.is_available
        yield cache
    finally:
        may_reply.set()
        await cache.close()
        server.close()


async def test_a_write_may_take_longer_than_a_lookup(metrics: RetrieverMetrics) -> None:
    may_reply = asyncio.Event()
    async with slow_redis(metrics, may_reply) as cache:
        cache.put_many({"k": RANKING, "l": RANKING})
        asyncio.get_running_loop().call_later(2 * TIMEOUT_SECONDS, may_reply.set)
        await cache._write_next()
        assert cache.is_available and metrics.cache_errors._value.get() == 0


async def test_a_write_without_a_reply_opens_the_breaker(
    metrics: RetrieverMetrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_cache, "_WRITE_SECONDS", TIMEOUT_SECONDS)
    async with slow_redis(metrics, asyncio.Event()) as cache:
        cache.put_many({"k": RANKING})
        await asyncio.wait_for(cache._write_next(), 10)
        assert not cache.is_available and "until it answers a probe: TimeoutError" in caplog.text


async def test_a_lookup_without_a_reply_waits_for_its_timeout_once(metrics: RetrieverMetrics) -> None:
    async with slow_redis(metrics, asyncio.Event()) as cache:
        started = time.monotonic()
        assert await cache.get_many(["k"], 4) == {}
        # 0.2 s, with margin for a busy machine, and less than the second that a write may take
        assert TIMEOUT_SECONDS <= time.monotonic() - started < 0.9
        assert not cache.is_available
        assert await cache.get_many(["k"], 4) == {}
        assert metrics.cache_errors._value.get() == 1
