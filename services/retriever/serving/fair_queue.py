"""Holds the queries that wait for the index; batches take equal shares of all requests.

Example with batches of 512: a request of 4,096 queries alone needs eight batches. A request of 4 queries that arrives
meanwhile has all four in the next batch, beside 508 of the large request, instead of waiting for the rest of it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from searchrl.errors import ServiceError
from services.retriever.ranking import RankedRows, Ranking, RankingScope

RankBatch = Callable[[Sequence[str], int, Mapping[str, str]], list[RankedRows]]
"""Ranks queries in one call: takes queries, top_k and filters, as ``Ranker.rank`` does."""


# Compared by identity (``eq=False``): the queue removes a request by ``deque.remove``, and two requests may well ask
# the same queries.
@dataclass(eq=False)
class WaitingRequest:
    """The queries of one request; they may be ranked in several batches.

    Attributes:
        deadline: on the clock of ``time.monotonic``; None: no deadline.
        answer: belongs to ``loop``; set from any thread by ``resolve``.
        taken: queries that batches have taken so far; ``rankings`` follows once they are ranked.
    """

    queries: Sequence[str]
    scope: RankingScope
    rank: RankBatch
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[list[Ranking]]"
    queued_at: float = field(default_factory=time.monotonic)
    taken: int = 0
    rankings: list[Ranking] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.queries) - self.taken

    def resolve(self, outcome: "list[Ranking] | ServiceError") -> None:
        """Answer the request; has no effect if it has its answer already or its caller was cancelled.

        Called in the owner thread, so the future is set by its own loop, which may have closed in the meantime.
        """

        def set_outcome() -> None:
            if self.answer.done():
                return
            if isinstance(outcome, ServiceError):
                self.answer.set_exception(outcome)
            else:
                self.answer.set_result(outcome)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(set_outcome)


class Share(NamedTuple):
    """Consecutive queries of one request."""

    request: WaitingRequest
    queries: Sequence[str]


class FairQueue:
    """Requests in the order of their next turn. Not thread-safe: callers hold the batcher's lock.

    A batch takes equal shares from all requests with the scope of the one whose turn it is; what is left of a request
    goes to the end. Where a batch has room for a query of each of them, a request gets its first share within as many
    batches as there are scopes, whatever the others' sizes.
    """

    def __init__(self) -> None:
        self._requests: deque[WaitingRequest] = deque()
        self.waiting_queries = 0

    def __bool__(self) -> bool:
        return bool(self._requests)

    def add(self, request: WaitingRequest) -> None:
        self._requests.append(request)
        self.waiting_queries += request.left

    def remove(self, request: WaitingRequest) -> None:
        """Remove what is left of a request; has no effect if nothing is."""
        # Linear in the number of requests; each has a query or more, so there are at most ``max_waiting`` of them.
        try:
            self._requests.remove(request)
        except ValueError:
            return
        self.waiting_queries -= request.left

    def take_expired(self, now: float) -> list[WaitingRequest]:
        """Remove and return the requests whose deadline has passed."""
        expired = [request for request in self._requests if request.deadline is not None and request.deadline <= now]
        for request in expired:
            self.remove(request)
        return expired

    def take_batch(self, max_queries: int) -> list[Share]:
        """The next batch, of one scope and at most ``max_queries`` queries; empty if nothing waits."""
        if not self._requests:
            return []
        # One scope per batch, because a batch is one call of the ranker, which takes one top_k and one set of filters.
        scope = self._requests[0].scope
        chosen = [request for request in self._requests if request.scope == scope]
        counts = _equal_shares([request.left for request in chosen], max_queries)
        batch: list[Share] = []
        for request, count in zip(chosen, counts, strict=True):
            if not count:
                continue
            batch.append(Share(request, request.queries[request.taken : request.taken + count]))
            self._requests.remove(request)
            request.taken += count
            if request.left:
                self._requests.append(request)
        self.waiting_queries -= sum(counts)
        return batch

    def take_all(self) -> list[WaitingRequest]:
        """Remove and return everything."""
        requests, self._requests = list(self._requests), deque()
        self.waiting_queries = 0
        return requests


def _equal_shares(wanted: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` evenly; what some do not want is divided among those that want more.

    A remainder goes to the first ones: 10 divided among [1, 20, 20] gives [1, 5, 4].
    """
    shares = [0] * len(wanted)
    open_at = [at for at, count in enumerate(wanted) if count]
    while total and open_at:
        # A round that satisfies nobody leaves less than one for each, so the next one is the last: at most one round
        # more than there are requests.
        each, extra = divmod(total, len(open_at))
        if not each:
            for at in open_at[:extra]:
                shares[at] += 1
            break
        for at in open_at:
            given = min(each, wanted[at] - shares[at])
            shares[at] += given
            total -= given
        open_at = [at for at in open_at if shares[at] < wanted[at]]
    return shares
