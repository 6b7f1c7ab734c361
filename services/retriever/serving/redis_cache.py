"""Shares rankings between replicas through Redis, whose failure delays a request by one short timeout at most.

Everything runs in the event loop: lookups in the request's task, probes and writes in two background tasks.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence

import orjson
import redis.asyncio
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from searchrl.errors import ConfigurationError
from searchrl.platform.owner_thread import FailureWatch, run_rounds
from searchrl.platform.settings import Section
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows

logger = logging.getLogger(__name__)

# Requests whose rankings wait to be written; more are dropped. A longer queue would hold more rankings in memory while
# Redis is slower than the searches, and write them no faster.
_WRITES_WAITING = 256
# Of all replies to one request's rankings. No request waits for a write, so it may take longer than a lookup; a Redis
# that needs a second for it is as good as unavailable.
_WRITE_SECONDS = 1.0
_SWALLOWED_SECONDS = 0.1  # a task that is still running then has not received its cancellation
# redis-py raises the last three if the reply is not of its protocol, because another kind of server answers.
_FAILURES = (RedisError, OSError, TimeoutError, ValueError, TypeError, LookupError)


class CacheSettings(Section):
    """The caches of rankings, in memory and in Redis."""

    # A ranking takes about 400 bytes and 76 per result: 100,000 rankings of three results take 63 MB, so the number of
    # entries is the limit that applies; of 100 results, 256 MiB hold about 33,000, so the size is.
    memory_entries: NonNegativeInt = Field(default=100_000, description="Rankings cached in memory; 0: none.")
    memory_megabytes: NonNegativeInt = Field(default=256, description="Memory of these rankings; 0: none.")
    redis_url: SecretStr | None = Field(default=None, description="Redis shared by replicas; unset: none.")
    # A lookup that waits longer delays its search more; one that waits less misses more often under load.
    redis_timeout_milliseconds: PositiveFloat = Field(default=50.0, description="Longest wait for a lookup.")
    redis_keep_seconds: PositiveInt = Field(default=86_400, description="Lifetime of an entry in Redis.")
    redis_probe_seconds: PositiveFloat = Field(default=1.0, description="Pause between probes of an unavailable Redis.")


class RedisCache:
    """A cache behind a circuit breaker.

    A lookup waits ``redis_timeout_milliseconds`` at most, a write in the background one second. The first failure opens
    the breaker: from then on lookups miss at once, until a probe in the background is answered.
    """

    def __init__(self, settings: CacheSettings, metrics: RetrieverMetrics) -> None:
        self._timeout_seconds = settings.redis_timeout_milliseconds / 1000
        self._keep_seconds = settings.redis_keep_seconds
        self._probe_seconds = settings.redis_probe_seconds
        url = settings.redis_url.get_secret_value() if settings.redis_url is not None else ""
        try:
            self._redis = redis.asyncio.Redis.from_url(
                url,
                # Every call has a timeout of its own, for the sum of its steps (AUTH, sending, replies): one of the
                # socket would apply to lookups and writes alike.
                socket_timeout=None,
                socket_connect_timeout=self._timeout_seconds,
                # redis-py retries by default, with pauses, and each attempt has the entire timeout; here the first
                # failure opens the breaker.
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
            pool = self._redis.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # unknown parameters of the URL raise only here
        except (ValueError, TypeError, AttributeError, RedisError) as error:
            raise ConfigurationError(f"cache.redis_url: {error}") from error
        self._metrics = metrics
        metrics.redis_configured.set(1)
        # No lookup waits for a Redis that has never answered: the probe in ``start`` closes the breaker.
        self._is_available = False
        self._is_broken = asyncio.Event()
        self._has_logged_garbage = False
        self._writes: asyncio.Queue[Mapping[str, RankedRows]] = asyncio.Queue(_WRITES_WAITING)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_available(self) -> bool:
        """Whether lookups go to Redis."""
        return self._is_available

    async def start(self) -> None:
        """Probe once, then keep probing whenever the breaker is open."""
        await self._probe()
        self._tasks = [
            asyncio.create_task(run_rounds(self._probe_when_broken, 0.0, FailureWatch("probe of Redis"))),
            asyncio.create_task(run_rounds(self._write_next, 0.0, FailureWatch("writer to Redis"))),
        ]

    async def close(self) -> None:
        """Stop the background tasks and close the connections."""
        for task in self._tasks:
            while not task.done():  # redis-py can swallow a cancellation that meets its own timeout
                task.cancel()
                await asyncio.wait({task}, timeout=_SWALLOWED_SECONDS)
        await self._redis.aclose()

    async def get_many(self, keys: Sequence[str], passages: int) -> dict[str, RankedRows]:
        """The rankings found among ``keys``; empty while Redis is unavailable.

        A value that is not a ranking of a corpus with this number of ``passages`` counts as a miss; the next ranking of
        its query overwrites it.
        """
        if not keys or not self._is_available:
            return {}
        try:
            async with asyncio.timeout(self._timeout_seconds):
                with self._metrics.redis_seconds.labels(call="read").time():
                    values = await self._redis.mget(keys)
            if not isinstance(values, list) or len(values) != len(keys):
                raise RedisError("the server at this address is not a Redis")
        except _FAILURES as error:
            self._break(error)
            return {}
        found: dict[str, RankedRows] = {}
        for key, value in zip(keys, values, strict=True):
            if value is None:
                continue
            if ranking := _decode(value, passages):
                found[key] = ranking
            else:
                self._note_garbage(key)
        return found

    def put_many(self, rankings: Mapping[str, RankedRows]) -> None:
        """Hand rankings to the background writer; dropped if it cannot keep up or Redis is unavailable."""
        if rankings and self._is_available:
            with contextlib.suppress(asyncio.QueueFull):
                self._writes.put_nowait(dict(rankings))

    def _note_garbage(self, key: str) -> None:
        self._metrics.cache_errors.inc()
        if not self._has_logged_garbage:
            self._has_logged_garbage = True
            logger.warning("Redis contains values that are not rankings, such as %s; they count as misses", key)

    def _break(self, error: BaseException) -> None:
        """Open the breaker after a failure; logs only the transition."""
        self._metrics.cache_errors.inc()
        if self._is_available:
            logger.warning("Redis is bypassed until it answers a probe: %s", str(error) or type(error).__name__)
        self._is_available = False
        self._metrics.redis_available.set(0)
        self._is_broken.set()

    async def _probe(self) -> None:
        """Close the breaker if Redis answers within the timeout."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._redis.ping()  # pyright: ignore[reportGeneralTypeIssues]
        except _FAILURES as error:
            self._break(error)
            return
        self._is_broken.clear()
        self._is_available = True
        self._metrics.redis_available.set(1)

    async def _probe_when_broken(self) -> None:
        await self._is_broken.wait()
        await asyncio.sleep(self._probe_seconds)
        await self._probe()

    async def _write_next(self) -> None:
        """Write the rankings of one request; dropped if Redis has become unavailable since they were queued."""
        rankings = await self._writes.get()
        if not self._is_available:
            return
        try:
            async with asyncio.timeout(max(_WRITE_SECONDS, self._timeout_seconds)):
                # No transaction: the keys are independent, so MULTI and EXEC would only add two commands. The lifetime
                # is what removes the rankings of replaced generations: their keys are never asked for again.
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for key, ranking in rankings.items():
                        pipeline.set(key, orjson.dumps([ranking.rows, ranking.scores]), ex=self._keep_seconds)
                    with self._metrics.redis_seconds.labels(call="write").time():
                        await pipeline.execute()
        except _FAILURES as error:
            self._break(error)


def _decode(value: bytes | str, passages: int) -> RankedRows | None:
    """The ranking that ``put_many`` wrote; None for anything else."""
    try:
        rows, scores = orjson.loads(value)
    except (orjson.JSONDecodeError, TypeError, ValueError):
        return None
    if not isinstance(rows, list) or not isinstance(scores, list) or len(rows) != len(scores):
        return None
    # Other programs may use the same Redis, so a row number outside of the corpus must not reach the passage store.
    # ``type`` instead of ``isinstance``, for which JSON's true is an int.
    has_rows = all(type(row) is int and 0 <= row < passages for row in rows)
    has_scores = all(type(score) in (int, float) for score in scores)
    return RankedRows(rows, scores) if has_rows and has_scores else None
