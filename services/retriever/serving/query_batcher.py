"""Ranks the queries of concurrent requests together: a bounded fair queue, drained by one supervised owner thread.

Requests are queued and removed in the event loop. The owner thread takes batches and is the only thread that touches
indexes and encoders, which are not thread-safe. Both hold ``_queue_changed`` for the queue, and never while a batch is
ranked, so that requests queue up meanwhile. Answers return to the loop by ``call_soon_threadsafe``.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveInt

from searchrl.errors import DeadlineExceeded, ErrorKind, InvalidRequest, Overloaded, TooLarge, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, OwnerThread
from searchrl.platform.settings import Section
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows, Ranking, RankingFailure, RankingScope
from services.retriever.serving.fair_queue import FairQueue, RankBatch, Share, WaitingRequest

logger = logging.getLogger(__name__)

OWNER = "query batcher"
_SMOOTHING = 0.2  # of the time per query: about the last ten batches count (0.8^10 is 0.1)
# Bounds of ``retry_after_seconds`` for a full queue: a caller should neither return before a batch can have finished,
# nor stay away for minutes because one batch was slow.
_RETRY_SECONDS = (0.05, 10.0)
ProbeTarget = Callable[[], tuple[RankingScope, RankBatch] | None]
_FAILED = RankingFailure(ErrorKind.INTERNAL, "internal error while ranking this query")


class BatchingSettings(Section):
    """The queue of waiting queries, and the batches they are ranked in. Sizes are in queries, not requests."""

    # Larger batches share one pass over the vectors and take longer.
    max_batch: PositiveInt = Field(default=512, description="Queries ranked together.")
    # Sixteen full batches: a longer queue would only turn refusals into passed deadlines.
    max_waiting: PositiveInt = Field(default=8192, description="Largest number of waiting queries; more are refused.")
    # Added to every search on an idle index, never on a busy one; a longer wait collects larger batches.
    wait_milliseconds: NonNegativeFloat = Field(
        default=1.0, description="How long an idle index waits for more queries."
    )
    # A single failed batch may be one bad query; three different ones in a row point to the index or the encoder.
    not_ready_after: PositiveInt = Field(
        default=3, description="Consecutive batches without any ranking that end readiness."
    )


class _Batch(NamedTuple):
    """Queries ranked in one call; without shares it is a probe, for which no request waits."""

    scope: RankingScope
    rank: RankBatch
    queries: Sequence[str]
    shares: Sequence[Share] = ()


class QueryBatcher:
    """Ranks queries in batches. Only the owner thread touches indexes and encoders.

    A query that cannot be ranked fails alone. A batch in which nothing can be ranked is a failure of the retriever:
    after ``not_ready_after`` consecutive ones, of different queries, it is not ready until a ranking succeeds again.

    Args:
        probe_target: the index generation in service, called in the owner thread. A probe asks that one, so that a
            generation that replaces a failing one restores readiness even without traffic.
        probe_seconds: how often a ranking is tried after a failed batch while no request arrives.
    """

    def __init__(
        self,
        settings: BatchingSettings,
        metrics: RetrieverMetrics,
        health: Health | None = None,
        probe_target: ProbeTarget = lambda: None,
        probe_seconds: float = 1.0,
    ) -> None:
        self._settings = settings
        self._probe_seconds = probe_seconds
        self._probe_target = probe_target
        self._metrics = metrics
        metrics.queue_limit.set(settings.max_waiting)
        self._queue = FairQueue()
        self._queue_changed = threading.Condition()  # guards the queue and _is_closed
        self._is_closed = False
        # Written by the owner thread without the lock; the event loop may read the value before or after a batch.
        self._seconds_per_query = 0.001  # a guess until the first batches are measured
        # Written by the owner thread only.
        self._failed_batch: _Batch | None = None
        self._ranked_query: str | None = None
        self._watch = FailureWatch(
            OWNER,
            health=health,
            count=metrics.thread_failures.labels(owner=OWNER).inc,
            not_ready_after=settings.not_ready_after,
        )
        self._thread = OwnerThread[_Batch](self, self._watch)
        # Last, because the thread uses everything above.
        self._thread.start()

    async def submit(
        self, queries: Sequence[str], scope: RankingScope, rank: RankBatch, deadline_seconds: float | None
    ) -> list[Ranking]:
        """Rank ``queries`` together with those of other requests; a cancelled caller frees its place in the queue.

        Raises:
            TooLarge: the request alone would overflow the queue.
            Overloaded: the queue is full; ``retry_after_seconds`` estimates when it will be empty.
            DeadlineExceeded: the deadline passed before the last query was taken.
            Unavailable: the retriever is stopping, or its owner thread has ended.
        """
        if not queries:
            return []
        loop = asyncio.get_running_loop()
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        request = WaitingRequest(queries, scope, rank, deadline, loop, loop.create_future())
        self._enqueue(request)
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._metrics.abandoned.inc()
            raise
        finally:
            # A cancelled request may still wait, entirely or in part; the owner ranks what it has taken already.
            with self._queue_changed:
                self._queue.remove(request)
                self._metrics.queue_depth.set(self._queue.waiting_queries)

    def close(self) -> None:
        """Stop the owner after its current batch; requests still waiting fail as unavailable."""
        with self._queue_changed:
            self._is_closed = True
            self._queue_changed.notify_all()
        self._thread.join()

    def take_work(self) -> _Batch | None:
        """See ``Owner``: the next batch that a request waits for; a probe after a failed batch while none arrives."""
        with self._queue_changed:
            # A loop, because the wait may end with nothing to take: requests expire, and callers leave.
            while not self._is_closed:
                if not self._queue:
                    patience = self._probe_seconds if self._failed_batch is not None else None
                    has_work = self._queue_changed.wait_for(lambda: self._queue or self._is_closed, patience)
                    if not has_work and self._failed_batch is not None:
                        return self._probe_of(self._failed_batch)
                    # Only an idle owner comes here: the first query waits briefly for others to share its pass.
                    self._queue_changed.wait_for(self._is_full_or_closed, self._settings.wait_milliseconds / 1000)
                if batch := self._take_batch():
                    return batch
        return None

    def do_work(self, work: _Batch) -> None:
        """See ``Owner``. Raises the ranker's error if nothing could be ranked."""
        started = time.monotonic()
        queries = list(dict.fromkeys(work.queries))
        rankings, error = self._rank_isolated(queries, work)
        seconds = time.monotonic() - started
        # Not for probes: the time of a single query would distort the average of full batches, which share one scan.
        if work.shares:
            self._metrics.batch_queries.observe(len(queries))
            self._metrics.stage_seconds.labels(stage="rank").observe(seconds)
            self._seconds_per_query += _SMOOTHING * (seconds / len(queries) - self._seconds_per_query)
        if error is not None and not rankings:
            # The same queries failing again are bad queries that a client retries, not a failing retriever.
            is_repeated = self._failed_batch is not None and set(queries) == set(self._failed_batch.queries)
            self._failed_batch = work
            if is_repeated and work.shares:
                logger.error("the same queries cannot be ranked again", exc_info=error)
                # The watch counts this kind of error neither as a failure nor as a success.
                raise InvalidRequest("these queries cannot be ranked") from error
            # ``OwnerThread`` records it in the watch, which decides about readiness, and then calls ``fail_work``.
            raise error
        else:
            self._failed_batch = None
            self._ranked_query = next(iter(rankings))
        if error is not None:
            self._metrics.failed_queries.inc(len(queries) - len(rankings))
            logger.error("queries cannot be ranked", exc_info=error, extra={"data": {"mode": work.scope.mode}})
        self._answer(work.shares, rankings)

    def fail_work(self, work: _Batch, error: Exception) -> None:
        """See ``Owner``: nothing of this batch could be ranked."""
        self._metrics.failed_queries.inc(len(set(work.queries)) if work.shares else 0)
        self._answer(work.shares, {})

    def refuse_work(self, error: Unavailable) -> None:
        """See ``Owner``."""
        with self._queue_changed:
            for request in self._queue.take_all():
                request.resolve(Unavailable(self._refusal(), error.retry_after_seconds))

    def _enqueue(self, request: WaitingRequest) -> None:
        """Add a request, or refuse it as ``submit`` says.

        The owner's end is checked under the lock that ``refuse_work`` takes, so no request is added after it has run.
        """
        count, limit = len(request.queries), self._settings.max_waiting
        with self._queue_changed:
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
            self._queue_changed.notify_all()

    def _refusal(self) -> str:
        return "the retriever is stopping" if self._is_closed else "the retriever's index thread has ended"

    def _is_full_or_closed(self) -> bool:
        return self._queue.waiting_queries >= self._settings.max_batch or self._is_closed

    def _take_batch(self) -> _Batch | None:
        """The next batch; deadlines are checked before every batch, not only when a request arrives."""
        now = time.monotonic()
        for request in self._queue.take_expired(now):
            self._metrics.rejected.labels(kind=ErrorKind.DEADLINE.value).inc()
            request.resolve(DeadlineExceeded("the request's deadline passed while it waited"))
        shares = self._queue.take_batch(self._settings.max_batch)
        self._metrics.queue_depth.set(self._queue.waiting_queries)
        if not shares:
            return None
        for request, queries in shares:
            # The first share only: the later ones of a large request wait behind the request's own queries.
            if request.taken == len(queries):
                self._metrics.stage_seconds.labels(stage="wait").observe(now - request.queued_at)
        first = shares[0].request
        return _Batch(first.scope, first.rank, [query for share in shares for query in share.queries], shares)

    def _probe_of(self, failed: _Batch) -> _Batch:
        """A probe with a query that could be ranked before, so that one bad query cannot keep the retriever not ready.

        It asks the failed index, or the one in service if another generation has replaced it.
        """
        scope, rank = failed.scope, failed.rank
        target = self._probe_target()
        if target is not None and target[0].generation != scope.generation:
            scope, rank = target
        return _Batch(scope, rank, [self._ranked_query or failed.queries[0]])

    def _rank_isolated(
        self, queries: Sequence[str], batch: _Batch
    ) -> tuple[dict[str, RankedRows], BaseException | None]:
        """Rank a batch; if that fails, halve it until each failing query is alone.

        Example with eight queries, of which number 5 cannot be ranked (x: the call fails, o: it succeeds):

            0 1 2 3 4 5 6 7
            x x x x x x x x
            o o o o
                    x x x x
                    x x
                    o
                      x          alone, so this query fails
                        o o

        One bad query of n costs 2 log2(n) + 1 calls: 19 for n = 512. Gives up on the rest after so many consecutive
        failures that single queries can hardly be the cause: every attempt with a broken encoder may take seconds.

        Returns:
            The rankings that were found, and the first error.
        """
        rankings: dict[str, RankedRows] = {}
        first_error: BaseException | None = None
        # One bad query among n fails at most log2(n) + 1 attempts in a row, from the entire batch down to itself: 10
        # for n = 512. Twice that (22) lets several bad queries stand side by side.
        failures, patience = 0, 2 * math.ceil(math.log2(len(queries) + 1)) + 2
        parts = [(0, len(queries))]
        while parts and failures < patience:
            start, end = parts.pop()
            try:
                ranked = batch.rank(queries[start:end], batch.scope.top_k, dict(batch.scope.filters))
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
