"""The queue under any sequence of operations: no query is lost or given twice, and no request starves."""

import asyncio
import math

from hypothesis import given
from hypothesis import strategies as st

from services.retriever.ranking import RankingScope
from services.retriever.serving.fair_queue import FairQueue, WaitingRequest

LOOP = asyncio.new_event_loop()
SCOPES = [RankingScope("g", "", "bm25", 3, (("world", name),)) for name in "abc"]


def request(size: int, scope: int, deadline: float | None = None) -> WaitingRequest:
    queries = [f"q{number}" for number in range(size)]
    return WaitingRequest(queries, SCOPES[scope], None, deadline, LOOP, LOOP.create_future())  # pyright: ignore[reportArgumentType]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40), st.integers(0, 2), st.none() | st.floats(0, 100)),
        st.tuples(st.just("leave"), st.integers(0, 100)),
        st.tuples(st.just("take"), st.integers(1, 16), st.floats(0, 100)),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_every_query_is_given_once_unless_its_request_left_or_expired(operations: list[tuple]) -> None:
    queue, added, gone, given_to = FairQueue(), [], set(), {}
    for operation in operations:
        if operation[0] == "add":
            added.append(request(*operation[1:]))
            queue.add(added[-1])
        elif operation[0] == "leave" and added:
            leaving = added[operation[1] % len(added)]
            gone.add(id(leaving))
            queue.remove(leaving)
        elif operation[0] == "take":
            gone |= {id(expired) for expired in queue.take_expired(operation[2])}
            batch = queue.take_batch(operation[1])
            assert len({share.request.scope for share in batch}) <= 1
            assert sum(len(share.queries) for share in batch) <= operation[1]
            for share in batch:
                assert id(share.request) not in gone
                given_to.setdefault(id(share.request), []).extend(share.queries)
        waiting = [one for one in added if id(one) not in gone and one.left]
        assert queue.waiting_queries == sum(one.left for one in waiting)
        assert bool(queue) is bool(waiting)
    while batch := queue.take_batch(7):
        for share in batch:
            given_to.setdefault(id(share.request), []).extend(share.queries)
    for one in added:
        if id(one) not in gone:
            assert given_to[id(one)] == list(one.queries)


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 2)), max_size=12), st.integers(1, 64), st.integers(0, 2))
def test_a_request_is_taken_in_turn_whatever_the_size_of_those_before_it(
    others: list[tuple[int, int]], max_queries: int, scope: int
) -> None:
    queue = FairQueue()
    for size, other_key in others:
        queue.add(request(size, other_key))
    late = request(1, scope)
    queue.add(late)
    # One batch serves all requests of a scope, or as many as fit; the rest of them queues up at the end.
    turns = 1 + sum(math.ceil([other for _, other in others].count(one) / max_queries) for one in range(len(SCOPES)))
    for _ in range(turns):
        if any(share.request is late for share in queue.take_batch(max_queries)):
            return
    raise AssertionError(f"not within {turns} batches")
