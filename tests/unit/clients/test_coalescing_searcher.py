"""Concurrent searches are sent together, and no caller suffers from another's query, deadline or cancellation."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from searchrl.clients.call_errors import QueryFailed
from searchrl.clients.coalescing_searcher import CoalescingSearcher
from searchrl.domain.passage import Passage, SearchResult
from searchrl.errors import DeadlineExceeded, InvalidRequest, Unavailable
from searchrl.platform.request_context import deadline, remaining_seconds

Results = list[list[SearchResult]]


class RecordingSearcher:
    """Answers each query with a passage of that id, and records the calls."""

    def __init__(self, error: Exception | None = None, gate: asyncio.Event | None = None) -> None:
        self.calls: list[tuple[tuple[str, ...], int, dict[str, str]]] = []
        self.seconds: list[float | None] = []
        self._error = error
        self._gate = gate

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> Results:
        self.calls.append((tuple(queries), top_k, dict(filters)))
        self.seconds.append(remaining_seconds())
        if self._gate is not None:
            await self._gate.wait()
        if self._error is not None:
            raise self._error
        if "bad" in queries:
            raise InvalidRequest("a bad query")
        if "broken" in queries:
            raise QueryFailed("no ranking for this one")
        return [[SearchResult(Passage(query, query, query), 1.0, 1)] for query in queries]


def ids(results: Results) -> list[list[str]]:
    return [[result.passage.id for result in row] for row in results]


async def test_searches_of_one_tick_are_one_call_and_equal_queries_are_sent_once() -> None:
    inner = RecordingSearcher()
    searcher = CoalescingSearcher(inner)
    answers = await asyncio.gather(
        searcher.search(["a", "b"], 3, {}), searcher.search(["b"], 3, {}), searcher.search(["c", "c"], 3, {})
    )
    assert inner.calls == [(("a", "b", "c"), 3, {})]
    assert [ids(answer) for answer in answers] == [[["a"], ["b"]], [["b"]], [["c"], ["c"]]]


async def test_different_top_k_or_filters_never_mix() -> None:
    inner = RecordingSearcher()
    searcher = CoalescingSearcher(inner)
    await asyncio.gather(
        searcher.search(["a"], 3, {}), searcher.search(["a"], 5, {}), searcher.search(["a"], 3, {"world": "w1"})
    )
    assert inner.calls == [(("a",), 3, {}), (("a",), 5, {}), (("a",), 3, {"world": "w1"})]


async def test_a_batch_never_exceeds_its_limit() -> None:
    inner = RecordingSearcher()
    searcher = CoalescingSearcher(inner, max_batch=2)
    await asyncio.gather(*(searcher.search([query], 3, {}) for query in "abcde"))
    assert [len(queries) for queries, _, _ in inner.calls] == [2, 2, 1]


async def test_callers_get_their_own_lists() -> None:
    searcher = CoalescingSearcher(RecordingSearcher())
    first, second = await asyncio.gather(searcher.search(["a"], 3, {}), searcher.search(["a"], 3, {}))
    first[0].clear()
    assert ids(second) == [["a"]]


async def test_one_invalid_query_fails_only_its_own_caller() -> None:
    searcher = CoalescingSearcher(RecordingSearcher())
    good, bad = await asyncio.gather(
        searcher.search(["good"], 3, {}), searcher.search(["bad"], 3, {}), return_exceptions=True
    )
    assert not isinstance(good, BaseException) and ids(good) == [["good"]]
    assert isinstance(bad, InvalidRequest)


async def test_one_query_that_the_retriever_cannot_rank_fails_only_its_own_caller() -> None:
    searcher = CoalescingSearcher(RecordingSearcher())
    good, broken = await asyncio.gather(
        searcher.search(["good"], 3, {}), searcher.search(["broken"], 3, {}), return_exceptions=True
    )
    assert not isinstance(good, BaseException) and ids(good) == [["good"]]
    assert isinstance(broken, QueryFailed)


async def test_an_outage_reaches_every_caller_as_its_own_exception() -> None:
    searcher = CoalescingSearcher(RecordingSearcher(error=Unavailable("down", 2.0)))
    first, second = await asyncio.gather(
        searcher.search(["a"], 3, {}), searcher.search(["b"], 3, {}), return_exceptions=True
    )
    assert isinstance(first, Unavailable) and isinstance(second, Unavailable)
    assert first is not second
    assert first.retry_after_seconds == 2.0


async def test_a_cancelled_caller_does_not_affect_the_others() -> None:
    gate = asyncio.Event()
    searcher = CoalescingSearcher(RecordingSearcher(gate=gate))
    leaver = asyncio.create_task(searcher.search(["a"], 3, {}))
    stayer = asyncio.create_task(searcher.search(["b"], 3, {}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaver.cancel()
    gate.set()
    assert ids(await stayer) == [["b"]]
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_a_short_deadline_ends_only_its_own_caller() -> None:
    gate = asyncio.Event()
    inner = RecordingSearcher(gate=gate)
    searcher = CoalescingSearcher(inner)

    async def hurried() -> Results:
        with deadline(0.02):
            return await searcher.search(["a"], 3, {})

    async def patient() -> Results:
        with deadline(60.0):
            return await searcher.search(["b"], 3, {})

    patient_task = asyncio.create_task(patient())
    with pytest.raises(DeadlineExceeded):
        await hurried()
    gate.set()
    assert ids(await patient_task) == [["b"]]
    assert inner.seconds[0] is not None and inner.seconds[0] > 30.0  # the batch has the longest of the deadlines


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_bug_in_the_searcher_fails_every_waiting_call() -> None:
    searcher = CoalescingSearcher(RecordingSearcher(error=KeyError("bug")))
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with asyncio.timeout(5):
        with pytest.raises(Exception, match="inside the client"):
            await searcher.search(["a"], 3, {})
