"""Joins the searches of concurrent rollouts into one call per tick of the event loop.

A search joins the pending batch of its (top_k, filters) key; the batch is sent at the next tick, or at once when it is
full, as a task of its own. Example: 200 rollouts that resume in one tick and share 150 different queries cost one call.
Everything runs in one event loop, and no method awaits between reading and changing ``_pending``, so it needs no lock.
"""

import asyncio
import contextvars
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from searchrl.agent.types import Searcher
from searchrl.clients.call_errors import QueryFailed
from searchrl.domain.passage import SearchResult
from searchrl.errors import DeadlineExceeded, ErrorKind, ServiceError
from searchrl.platform.request_context import deadline, remaining_seconds

Results = list[list[SearchResult]]
_Key = tuple[int, tuple[tuple[str, str], ...]]
_CALLER_ERRORS = frozenset({ErrorKind.INVALID, ErrorKind.TOO_LARGE, ErrorKind.NOT_FOUND})


@dataclass(slots=True)
class _Call:
    queries: tuple[str, ...]
    seconds: float | None
    future: "asyncio.Future[Results]"


@dataclass(slots=True)
class _Batch:
    top_k: int
    filters: dict[str, str]
    calls: list[_Call] = field(default_factory=list)
    unique: dict[str, None] = field(default_factory=dict)


class CoalescingSearcher:
    """Joins concurrent searches with equal (top_k, filters) into one call; equal queries are sent once.

    Every caller keeps its own deadline, and its cancellation does not affect the others. A batch that fails for one
    query, or is refused as invalid, is retried caller by caller, so that one bad query fails only its own caller.

    Args:
        max_batch: most distinct queries of a call. Larger: fewer calls, but each caller waits for a longer one; the
            retriever accepts 4096 queries by default.
    """

    def __init__(self, searcher: Searcher, max_batch: int = 256) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self._searcher = searcher
        self._max_batch = max_batch
        self._pending: dict[_Key, _Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> Results:
        """See ``searchrl.agent.types.Searcher``."""
        loop = asyncio.get_running_loop()
        # The time left is noted now, because the batch runs outside this caller's context.
        call = _Call(tuple(queries), remaining_seconds(), loop.create_future())
        key = (top_k, tuple(sorted(filters.items())))
        batch = self._pending.get(key)
        if batch is not None and len(batch.unique.keys() | set(call.queries)) > self._max_batch:
            self._send(key, batch)
            batch = None
        if batch is None:
            # ``call_soon`` appends to the loop's queue: every rollout that is ready in this tick is resumed before
            # ``_send`` runs, so waiting for more callers costs no time.
            batch = self._pending[key] = _Batch(top_k, dict(filters))
            loop.call_soon(self._send, key, batch)
        batch.calls.append(call)
        batch.unique.update(dict.fromkeys(call.queries))
        try:
            # Cancels only this caller's future; ``_run`` skips futures that are done.
            async with asyncio.timeout(call.seconds):
                return await call.future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while waiting for search results") from None

    def _send(self, key: _Key, batch: _Batch) -> None:
        if self._pending.get(key) is not batch:
            return  # already sent, because it was full
        del self._pending[key]
        # An empty context, because the batch belongs to no single caller's request, deadline or span.
        task = asyncio.get_running_loop().create_task(self._run(batch), context=contextvars.Context())
        # The event loop holds tasks only weakly: without this set a running batch could be garbage-collected.
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, batch: _Batch) -> None:
        calls = [call for call in batch.calls if not call.future.done()]
        if not calls:
            return
        try:
            await self._search_for(batch, calls)
        except ServiceError as error:
            is_one_callers = isinstance(error, QueryFailed) or error.kind in _CALLER_ERRORS
            # Costs one more call for each caller, and only after a caller's own error. An outage is not retried like
            # this: it would multiply the load on a retriever that is failing already.
            if is_one_callers and len(calls) > 1:
                await asyncio.gather(*(self._run_alone(batch, call) for call in calls))
                return
            _fail(calls, error)
        finally:
            _cancel_unanswered(calls)

    async def _run_alone(self, batch: _Batch, call: _Call) -> None:
        try:
            await self._search_for(batch, [call])
        except ServiceError as error:
            _fail([call], error)

    async def _search_for(self, batch: _Batch, calls: Sequence[_Call]) -> None:
        # The call may last as long as its most patient caller; the others time out by themselves in ``search``.
        queries = list(dict.fromkeys(query for call in calls for query in call.queries))
        limits = [call.seconds for call in calls]
        with deadline(None if None in limits else max(limit for limit in limits if limit is not None)):
            answers = await self._searcher.search(queries, batch.top_k, batch.filters)
        by_query = dict(zip(queries, answers, strict=True))
        for call in calls:
            if not call.future.done():
                # A list for each caller, because callers that share a query may change theirs.
                call.future.set_result([list(by_query[query]) for query in call.queries])


def _fail(calls: Sequence[_Call], error: ServiceError) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(copy.copy(error))  # a copy each: raising adds to an exception's traceback


def _cancel_unanswered(calls: Sequence[_Call]) -> None:
    """Fail the callers that an unexpected error left without an answer; the event loop reports the error itself."""
    for call in calls:
        if not call.future.done():
            call.future.set_exception(ServiceError("the search failed inside the client"))
