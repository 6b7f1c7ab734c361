"""Lets concurrent requests share one pass over the index: a bounded fair queue with one supervised owner thread."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from searchrl.errors import DeadlineExceeded, ErrorKind, InvalidRequest, Overloaded, TooLarge, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, OwnerThread
from services.retriever.batching.fair_queue import (
    BatchKey,
    FairQueue,
    Ranking,
    RankingFailure,
    Share,
    WaitingRequest,
)
from services.retriever.indexes.ranked_rows import RankedRows, Ranker
from services.retriever.metrics import RetrieverMetrics

logger = logging.getLogger(__name__)

OWNER = "query batcher"
_SMOOTHING = 0.2  # of the time per query: the last ten batches or so count
_RETRY_SECONDS = (0.05, 10.0)
ProbeTarget = Callable[[], "tuple[BatchKey, Ranker] | None"]
_FAILED = RankingFailure(ErrorKind.INTERNAL, "internal error while ranking this query")


@dataclass(frozen=True)
class BatchLimits:
    """Sizes in queries, not requests.

    Attributes:
        wait_seconds: how long an idle owner waits for company; a busy one never waits, its queue fills meanwhile.
        not_ready_after: so many batches in a row that failed as a whole take readiness away.
        probe_seconds: how often a ranking is tried while the retriever is not ready and nobody asks.
    """

    max_batch: int = 512
    max_waiting: int = 8192
    wait_seconds: float = 0.001
    not_ready_after: int = 3
    probe_seconds: float = 1.0


class _Batch(NamedTuple):
    """Queries ranked in one call; without shares it is a probe, which nobody waits for."""

    key: BatchKey
    ranker: Ranker
    queries: Sequence[str]
    shares: Sequence[Share] = ()


class QueryBatcher:
    """Ranks queries in batches. Indexes and encoders are touched by the owner thread only.

    A query that cannot be ranked fails alone. A batch in which nothing can be ranked is a failure of the retriever:
    after ``not_ready_after`` of them in a row, of different queries, it is not ready, until a ranking succeeds again.

    Args:
        probe_target: the index generation in service, called in the owner thread. A probe asks that one, so that a
            generation put in the place of a failing one brings readiness back although no traffic arrives.
    """

    def __init__(
        self,
        limits: BatchLimits,
        metrics: RetrieverMetrics,
        health: Health | None = None,
        probe_target: ProbeTarget = lambda: None,
    ) -> None:
        self._limits = limits
        self._probe_target = probe_target
        self._metrics = metrics
        metrics.queue_limit.set(limits.max_waiting)
        self._queue = FairQueue()
        self._changed = threading.Condition()  # guards the queue and _is_closed
        self._is_closed = False
        self._seconds_per_query = 0.001
        # Written by the owner thread only.
        self._failed_batch: _Batch | None = None
        self._ranked_query: str | None = None
        self._watch = FailureWatch(
            OWNER,
            health=health,
            count=metrics.thread_failures.labels(owner=OWNER).inc,
            not_ready_after=limits.not_ready_after,
        )
        self._thread = OwnerThread[_Batch](self, self._watch)
        self._thread.start()

    async def rank(
        self, queries: Sequence[str], key: BatchKey, ranker: Ranker, deadline_seconds: float | None
    ) -> list[Ranking]:
        """Rank ``queries`` together with whatever else waits; a caller that is cancelled frees its place.

        Raises:
            TooLarge: the request alone would overflow the queue.
            Overloaded: the queue is full; ``retry_after_seconds`` estimates when it will have emptied.
            DeadlineExceeded: its turn came too late.
            Unavailable: the retriever stops, or its owner thread has ended.
        """
        if not queries:
            return []
        loop = asyncio.get_running_loop()
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        request = WaitingRequest(queries, key, ranker, deadline, loop, loop.create_future())
        self._enqueue(request)
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._metrics.abandoned.inc()
            raise
        finally:
            with self._changed:
                self._queue.remove(request)
                self._metrics.queue_depth.set(self._queue.waiting_queries)

    def close(self) -> None:
        """Stop the owner; what still waits fails as unavailable."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def take_work(self) -> _Batch | None:
        """See ``Owner``: the next batch in which somebody still waits; a probe while nothing can be ranked."""
        with self._changed:
            while not self._is_closed:
                if not self._queue:
                    patience = self._limits.probe_seconds if self._failed_batch is not None else None
                    has_work = self._changed.wait_for(lambda: self._queue or self._is_closed, patience)
                    if not has_work and self._failed_batch is not None:
                        return self._probe_of(self._failed_batch)
                    self._changed.wait_for(self._is_full_or_closed, self._limits.wait_seconds)
                if batch := self._take_batch():
                    return batch
        return None

    def do_work(self, work: _Batch) -> None:
        """See ``Owner``. Raises what the ranker raised where nothing could be ranked."""
        started = time.monotonic()
        queries = list(dict.fromkeys(work.queries))
        rankings, error = self._rank_isolated(queries, work)
        seconds = time.monotonic() - started
        if work.shares:
            self._metrics.batch_queries.observe(len(queries))
            self._metrics.stage_seconds.labels(stage="rank").observe(seconds)
            self._seconds_per_query += _SMOOTHING * (seconds / len(queries) - self._seconds_per_query)
        if error is not None and not rankings:
            # The same query asked again and again is one poisoned query, not a retriever that is failing.
            is_repeated = self._failed_batch is not None and set(queries) == set(self._failed_batch.queries)
            self._failed_batch = work
            if is_repeated and work.shares:
                logger.error("the same queries cannot be ranked again", exc_info=error)
                # Says nothing about the retriever, neither that it fails nor that it works.
                raise InvalidRequest("these queries cannot be ranked") from error
            raise error
        else:
            self._failed_batch = None
            self._ranked_query = next(iter(rankings))
        if error is not None:
            self._metrics.failed_queries.inc(len(queries) - len(rankings))
            logger.error("queries cannot be ranked", exc_info=error, extra={"data": {"mode": work.key.mode}})
        self._answer(work.shares, rankings)

    def fail_work(self, work: _Batch, error: Exception) -> None:
        """See ``Owner``: nothing of this batch could be ranked."""
        self._metrics.failed_queries.inc(len(set(work.queries)) if work.shares else 0)
        self._answer(work.shares, {})

    def refuse_work(self, error: Unavailable) -> None:
        """See ``Owner``."""
        with self._changed:
            for request in self._queue.take_all():
                request.resolve(Unavailable(self._refusal(), error.retry_after_seconds))

    def _enqueue(self, request: WaitingRequest) -> None:
        count, limit = len(request.queries), self._limits.max_waiting
        with self._changed:
            if self._is_closed:
                raise Unavailable(self._refusal())
            self._watch.check()
            if count > limit:
                raise TooLarge(f"{count} queries in one request; the queue holds {limit}")
            waiting = self._queue.waiting_queries
            if waiting + count > limit:
                self._metrics.rejected.labels(kind=ErrorKind.OVERLOADED.value).inc()
                low, high = _RETRY_SECONDS
                seconds = min(max(waiting * self._seconds_per_query, low), high)
                raise Overloaded(f"{waiting} queries are waiting", retry_after_seconds=round(seconds, 3))
            self._queue.add(request)
            self._metrics.queue_depth.set(self._queue.waiting_queries)
            self._changed.notify_all()

    def _refusal(self) -> str:
        return "the retriever is stopping" if self._is_closed else "the retriever's index thread has ended"

    def _is_full_or_closed(self) -> bool:
        return self._queue.waiting_queries >= self._limits.max_batch or self._is_closed

    def _take_batch(self) -> _Batch | None:
        """One scan's worth; deadlines are looked at before every scan, not only when a request arrives."""
        now = time.monotonic()
        for request in self._queue.take_expired(now):
            self._metrics.rejected.labels(kind=ErrorKind.DEADLINE.value).inc()
            request.resolve(DeadlineExceeded("the request's deadline passed while it waited"))
        shares = self._queue.take_batch(self._limits.max_batch)
        self._metrics.queue_depth.set(self._queue.waiting_queries)
        if not shares:
            return None
        for request, queries in shares:
            if request.taken == len(queries):
                self._metrics.stage_seconds.labels(stage="wait").observe(now - request.queued_at)
        first = shares[0].request
        return _Batch(first.key, first.ranker, [query for share in shares for query in share.queries], shares)

    def _probe_of(self, failed: _Batch) -> _Batch:
        """Ask for something that could be ranked before: a single poisoned query must not keep readiness away."""
        key, ranker = failed.key, failed.ranker
        target = self._probe_target()
        if target is not None and target[0].generation != key.generation:
            key, ranker = target
        return _Batch(key, ranker, [self._ranked_query or failed.queries[0]])

    def _rank_isolated(
        self, queries: Sequence[str], batch: _Batch
    ) -> tuple[dict[str, RankedRows], BaseException | None]:
        """Rank a batch; where that fails, halve it until the failing queries stand alone.

        Gives up on the rest when so many attempts in a row have failed that single queries can hardly be the cause:
        every attempt with a broken encoder may cost seconds.

        Returns:
            The rankings that were found, and the first error.
        """
        rankings: dict[str, RankedRows] = {}
        first_error: BaseException | None = None
        failures, patience = 0, 2 * math.ceil(math.log2(len(queries) + 1)) + 2
        parts = [(0, len(queries))]
        while parts and failures < patience:
            start, end = parts.pop()
            try:
                ranked = batch.ranker.rank(queries[start:end], batch.key.top_k, dict(batch.key.filters))
                rankings |= dict(zip(queries[start:end], ranked, strict=True))
                failures = 0
            except BaseException as error:  # noqa: BLE001 - panics of native code are no Exceptions
                first_error = first_error or error
                failures += 1
                middle = (start + end) // 2
                parts += [part for part in ((middle, end), (start, middle)) if middle > start]
        return rankings, first_error

    def _answer(self, shares: Sequence[Share], rankings: Mapping[str, RankedRows]) -> None:
        for request, queries in shares:
            request.rankings += [rankings.get(query, _FAILED) for query in queries]
            if len(request.rankings) == len(request.queries):
                request.resolve(request.rankings)
