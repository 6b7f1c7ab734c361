"""The least recently used value is evicted first; concurrent callers share one call per key."""

import asyncio
import math
from collections.abc import Sequence

import pytest

from searchrl.errors import DeadlineExceeded, Unavailable
from searchrl.platform.caches import BatchFlight, LruCache, SingleFlight
from searchrl.platform.request_context import deadline, remaining_seconds


def test_the_least_recently_used_value_is_evicted_first() -> None:
    cache = LruCache[str, bool](2)
    assert cache.put("a", True) == cache.put("b", False) == 0
    cache.get("a")
    assert cache.put("c", True) == 1
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (True, None, True, 2)


def test_a_cache_of_no_entries_keeps_nothing() -> None:
    cache = LruCache[str, bool](0)
    assert cache.put("a", True) == 1
    assert cache.get("a") is None and len(cache) == 0


def test_a_cache_is_bounded_by_its_bytes_too() -> None:
    cache = LruCache[str, str](10, max_bytes=5, size_of=len)
    cache.put("a", "xxx")
    assert cache.put("b", "xxx") == 1 and cache.bytes == 3
    cache.put("b", "x")
    assert cache.bytes == 1


def test_a_value_that_does_not_fit_evicts_no_other_and_only_removes_the_old_value_of_its_key() -> None:
    cache = LruCache[str, str](10, max_bytes=5, size_of=len)
    cache.put("a", "xx")
    cache.put("b", "xxx")
    assert cache.put("c", "x" * 6) == 0
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.bytes) == ("xx", "xxx", None, 5)
    assert cache.put("a", "x" * 6) == 0
    assert (cache.get("a"), cache.get("b"), cache.bytes) == (None, "xxx", 3)


class Calls:
    """Counts its calls; each waits for ``go`` and then fails or returns the number of the call."""

    def __init__(self) -> None:
        self.count = 0
        self.go = asyncio.Event()
        self.fails = False

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        await self.go.wait()
        if self.fails:
            raise Unavailable("gone")
        return number


@pytest.mark.parametrize(("keep_results", "later"), [(False, 2), (True, 1)])
async def test_callers_share_a_call_in_progress_and_its_result_if_it_is_kept(keep_results: bool, later: int) -> None:
    flight, calls = SingleFlight[str, int](keep_results=keep_results), Calls()
    callers = [asyncio.create_task(flight.run("k", calls)) for _ in range(3)]
    await asyncio.sleep(0)
    calls.go.set()
    assert await asyncio.gather(*callers) == [1, 1, 1]
    assert await flight.run("k", calls) == later


async def test_the_cancellation_of_one_caller_does_not_cancel_the_call_of_the_others() -> None:
    flight, calls = SingleFlight[str, int](), Calls()
    first, second = (asyncio.create_task(flight.run("k", calls)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    calls.go.set()
    assert await second == 1


async def answer_in_time(seconds: float) -> float:
    """Take ``seconds``, but fail at the deadline, as a client does; returns the time that was left."""
    left = remaining_seconds()
    if left is not None and left < seconds:
        await asyncio.sleep(left)
        raise DeadlineExceeded("no answer in time")
    await asyncio.sleep(seconds)
    return math.inf if left is None else left


async def run_within(flight: SingleFlight[str, float], limit: float | None, seconds: float) -> float:
    with deadline(limit):
        return await flight.run("k", lambda: answer_in_time(seconds))


async def test_a_call_that_fails_at_its_starters_deadline_is_repeated_by_those_with_a_later_one() -> None:
    flight = SingleFlight[str, float]()
    limits = (0.1, 0.05, 30.0, None)
    callers = [asyncio.create_task(run_within(flight, limit, 0.2)) for limit in limits]
    first, earlier, later, unlimited = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(first, DeadlineExceeded) and isinstance(earlier, DeadlineExceeded)
    assert isinstance(later, float) and 0.2 < later < 30.0
    assert unlimited == later, "those that repeat the call share it as well"


async def test_a_caller_waits_for_a_call_of_another_until_its_own_deadline() -> None:
    flight, calls = SingleFlight[str, int](), Calls()
    first = asyncio.create_task(flight.run("k", calls))
    await asyncio.sleep(0)
    with deadline(0.01), pytest.raises(DeadlineExceeded, match="waiting for the call of another"):
        await flight.run("k", calls)
    calls.go.set()
    assert await first == 1


async def test_a_failed_call_reaches_all_its_callers_and_is_repeated_by_the_next() -> None:
    flight, calls = SingleFlight[str, int](keep_results=True), Calls()
    callers = [asyncio.create_task(flight.run("k", calls)) for _ in range(2)]
    await asyncio.sleep(0)
    calls.fails = True
    calls.go.set()
    assert [type(error) for error in await asyncio.gather(*callers, return_exceptions=True)] == [Unavailable] * 2
    calls.fails = False
    assert await flight.run("k", calls) == 2


async def test_what_is_cleared_meanwhile_is_not_kept() -> None:
    flight, calls = SingleFlight[str, int](keep_results=True), Calls()
    early = asyncio.create_task(flight.run("k", calls))
    await asyncio.sleep(0)
    flight.clear()
    late = asyncio.create_task(flight.run("k", calls))
    await asyncio.sleep(0)
    calls.go.set()
    assert (await early, await late, await flight.run("k", calls)) == (1, 2, 2)


async def test_a_batch_computes_only_what_nobody_computes() -> None:
    joined: list[int] = []
    flight, asked, go = BatchFlight[str, str](joined.append), list[list[str]](), asyncio.Event()

    async def compute(keys: Sequence[str]) -> Sequence[str]:
        asked.append(list(keys))
        await go.wait()
        return [key.upper() for key in keys]

    first = asyncio.create_task(flight.run(["a", "b"], compute))
    second = asyncio.create_task(flight.run(["b", "c"], compute))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go.set()
    assert await first == {"a": "A", "b": "B"} and await second == {"b": "B", "c": "C"}
    assert asked == [["a", "b"], ["c"]] and joined == [1]
