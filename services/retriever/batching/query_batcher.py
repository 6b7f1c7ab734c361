"""How do concurrent requests share one pass over the index? A bounded queue with one owner thread."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from searchrl.errors import DeadlineExceeded, ErrorKind, Overloaded, ServiceError, TooLarge, Unavailable
from services.retriever.indexes.ranked_rows import RankedRows, Ranker
from services.retriever.metrics import RetrieverMetrics

logger = logging.getLogger(__name__)

_SMOOTHING = 0.2
_RETRY_SECONDS = (0.05, 10.0)


class BatchKey(NamedTuple):
    """Queries with equal keys can be ranked in one call."""

    generation: str
    mode: str
    top_k: int
    filters: tuple[tuple[str, str], ...]


class RankingFailure(NamedTuple):
    """This query could not be ranked; its neighbours are not affected."""

    kind: ErrorKind
    message: str

    @property
    def text(self) -> str:
        """What the caller is told; clients read the kind from it."""
        return f"{self.kind.value}: {self.message}"


Ranking = RankedRows | RankingFailure


@dataclass(eq=False)
class _Job:
    queries: Sequence[str]
    key: BatchKey
    ranker: Ranker
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[list[Ranking]]"
    queued_at: float = field(default_factory=time.monotonic)
    is_abandoned: bool = False


@dataclass(frozen=True)
class BatchLimits:
    """Sizes in queries, not requests.

    Attributes:
        wait_seconds: how long an idle owner waits for company; a busy one never waits, its queue fills meanwhile.
    """

    max_batch: int = 512
    max_waiting: int = 8192
    wait_seconds: float = 0.001


class QueryBatcher:
    """Ranks queries in batches. Indexes and encoders are touched by the owner thread only."""

    def __init__(self, limits: BatchLimits, metrics: RetrieverMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        metrics.queue_limit.set(limits.max_waiting)
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._seconds_per_query = 0.001
        self._owner = threading.Thread(target=self._own, name="query-batcher", daemon=True)
        self._owner.start()

    async def rank(
        self, queries: Sequence[str], key: BatchKey, ranker: Ranker, deadline_seconds: float | None
    ) -> list[Ranking]:
        """Rank ``queries`` together with whatever else waits.

        Raises:
            TooLarge: the request alone would overflow the queue.
            Overloaded: the queue is full; ``retry_after_seconds`` estimates when it will have emptied.
            DeadlineExceeded: its turn came too late.
        """
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        jobs = self._enqueue(queries, key, ranker, deadline)
        try:
            answers = await asyncio.gather(*(job.answer for job in jobs))
        except asyncio.CancelledError:
            self._metrics.abandoned.inc()
            raise
        finally:
            for job in jobs:
                job.is_abandoned = True
        return [ranking for answer in answers for ranking in answer]

    def close(self) -> None:
        """Stop the owner; what still waits fails as unavailable."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._owner.join(timeout=30)

    def _enqueue(self, queries: Sequence[str], key: BatchKey, ranker: Ranker, deadline: float | None) -> list[_Job]:
        loop = asyncio.get_running_loop()
        size = self._limits.max_batch
        jobs = [
            _Job(queries[at : at + size], key, ranker, deadline, loop, loop.create_future())
            for at in range(0, len(queries), size)
        ]
        with self._changed:
            self._admit(len(queries))
            self._jobs.extend(jobs)
            self._waiting += len(queries)
            self._metrics.queue_depth.set(self._waiting)
            self._changed.notify_all()
        return jobs

    def _admit(self, count: int) -> None:
        if self._is_closed:
            raise Unavailable("the retriever is stopping")
        limit = self._limits.max_waiting
        if count > limit:
            raise TooLarge(f"{count} queries in one request; the queue holds {limit}")
        if self._waiting + count > limit:
            self._metrics.rejected.labels(kind=ErrorKind.OVERLOADED.value).inc()
            low, high = _RETRY_SECONDS
            seconds = min(max(self._waiting * self._seconds_per_query, low), high)
            raise Overloaded(f"{self._waiting} queries are waiting", retry_after_seconds=round(seconds, 3))

    def _own(self) -> None:
        while batch := self._next_batch():
            by_key: dict[BatchKey, list[_Job]] = {}
            for job in batch:
                by_key.setdefault(job.key, []).append(job)
            for jobs in by_key.values():
                self._answer(jobs)

    def _next_batch(self) -> list[_Job]:
        """The oldest jobs that somebody still waits for, as many as fit; empty when closed."""
        with self._changed:
            while not self._is_closed:
                if not self._jobs:
                    self._changed.wait_for(lambda: self._jobs or self._is_closed)
                    self._changed.wait_for(self._is_full_or_closed, self._limits.wait_seconds)
                if batch := self._take():
                    return batch
            for job in self._jobs:
                _resolve(job, Unavailable("the retriever is stopping"))
            return []

    def _is_full_or_closed(self) -> bool:
        return self._waiting >= self._limits.max_batch or self._is_closed

    def _take(self) -> list[_Job]:
        batch: list[_Job] = []
        count = 0
        now = time.monotonic()
        while self._jobs and (not batch or count + len(self._jobs[0].queries) <= self._limits.max_batch):
            job = self._jobs.popleft()
            self._waiting -= len(job.queries)
            if job.is_abandoned:
                continue
            if job.deadline is not None and job.deadline <= now:
                self._metrics.rejected.labels(kind=ErrorKind.DEADLINE.value).inc()
                _resolve(job, DeadlineExceeded("the request's deadline passed while it waited"))
                continue
            self._metrics.stage_seconds.labels(stage="wait").observe(now - job.queued_at)
            batch.append(job)
            count += len(job.queries)
        self._metrics.queue_depth.set(self._waiting)
        return batch

    def _answer(self, jobs: Sequence[_Job]) -> None:
        started = time.monotonic()
        queries = list(dict.fromkeys(query for job in jobs for query in job.queries))
        self._metrics.batch_queries.observe(len(queries))
        rankings = dict(zip(queries, self._rank_isolated(queries, jobs[0]), strict=True))
        seconds = time.monotonic() - started
        self._metrics.stage_seconds.labels(stage="rank").observe(seconds)
        self._seconds_per_query += _SMOOTHING * (seconds / len(queries) - self._seconds_per_query)
        for job in jobs:
            _resolve(job, [rankings[query] for query in job.queries])

    def _rank_isolated(self, queries: Sequence[str], job: _Job) -> Sequence[Ranking]:
        """Rank a batch; where that fails, halve it until the failing queries stand alone."""
        try:
            return job.ranker.rank(queries, job.key.top_k, dict(job.key.filters))
        except Exception:  # the border of the owner thread: one bad query must not stop it
            if len(queries) == 1:
                logger.exception("a query cannot be ranked", extra={"data": {"mode": job.key.mode}})
                self._metrics.failed_queries.inc()
                return [RankingFailure(ErrorKind.INTERNAL, "internal error while ranking this query")]
        middle = len(queries) // 2
        return [*self._rank_isolated(queries[:middle], job), *self._rank_isolated(queries[middle:], job)]


def _resolve(job: _Job, outcome: "list[Ranking] | ServiceError") -> None:
    def set_outcome() -> None:
        if job.answer.done():
            return
        if isinstance(outcome, ServiceError):
            job.answer.set_exception(outcome)
        else:
            job.answer.set_result(outcome)

    if not job.loop.is_closed():
        job.loop.call_soon_threadsafe(set_outcome)
