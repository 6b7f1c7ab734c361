"""The query batcher between requests and the index: batches, fairness, deadlines, failures and readiness.

Tests run in the event loop's thread; the batcher ranks in its owner thread, which a closed gate of the ranker blocks.
``await asyncio.sleep(0)`` lets tasks that were just created put their requests into the queue.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from searchrl.errors import DeadlineExceeded, ErrorKind, Overloaded, TooLarge, Unavailable
from searchrl.platform.health import Health
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows, Ranking, RankingFailure, RankingScope
from services.retriever.serving.query_batcher import BatchingSettings, QueryBatcher

SCOPE = RankingScope("g1", "", "bm25", 3, ())
MakeBatcher = Callable[..., QueryBatcher]


async def entered(ranker) -> None:
    assert await asyncio.to_thread(ranker.entered.wait, 10)


def count_of(metrics: RetrieverMetrics) -> float:
    return metrics.thread_failures.labels(owner="query batcher")._value.get()


def scores_of(answer: Sequence[Ranking]) -> list[float]:
    """The best score of each query; requires that all were ranked."""
    ranked = [ranking for ranking in answer if isinstance(ranking, RankedRows)]
    assert len(ranked) == len(answer)
    return [ranking.scores[0] for ranking in ranked]


async def hold(batcher: QueryBatcher, ranker, scope: RankingScope = SCOPE) -> "asyncio.Task[list[Ranking]]":
    """Occupy the owner thread until the ranker's gate opens."""
    ranker.gate.clear()
    task = asyncio.create_task(batcher.submit(["first"], scope, ranker.rank, None))
    await entered(ranker)
    return task


async def test_requests_that_wait_are_ranked_together_and_each_gets_its_own(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher()
    first = await hold(batcher, gated_ranker)
    requests = [
        asyncio.create_task(batcher.submit(["a" * n, "same"], SCOPE, gated_ranker.rank, None)) for n in range(1, 6)
    ]
    await asyncio.sleep(0)
    gated_ranker.gate.set()
    answers = await asyncio.gather(*requests)
    assert scores_of(await first) == [5.0]
    assert [scores_of(answer) for answer in answers] == [[float(n), 4.0] for n in range(1, 6)]
    # one batch for all five, and the query they share is in it once
    assert gated_ranker.batches == [["first"], ["a", "same", "aa", "aaa", "aaaa", "aaaaa"]]


async def test_requests_with_other_parameters_are_ranked_apart(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher()
    first = await hold(batcher, gated_ranker)
    other = SCOPE._replace(filters=(("world", "w1"),))
    requests = [asyncio.create_task(batcher.submit([query], scope, gated_ranker.rank, None))
                for query, scope in (("a", SCOPE), ("b", other), ("c", SCOPE))]  # fmt: skip
    await asyncio.sleep(0)
    gated_ranker.gate.set()
    await asyncio.gather(first, *requests)
    assert gated_ranker.batches[1:] == [["a", "c"], ["b"]]


async def test_a_large_request_is_cut_into_batches_and_keeps_its_order(make_batcher: MakeBatcher, gated_ranker):
    queries = ["q" * n for n in range(1, 26)]
    answer = await make_batcher(max_batch=10).submit(queries, SCOPE, gated_ranker.rank, None)
    assert scores_of(answer) == [float(n) for n in range(1, 26)]
    assert max(map(len, gated_ranker.batches)) <= 10


async def test_a_full_queue_refuses_and_says_when_to_retry(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher(max_waiting=3)
    first = await hold(batcher, gated_ranker)
    waiting = asyncio.create_task(batcher.submit(["a", "b", "c"], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await batcher.submit(["d"], SCOPE, gated_ranker.rank, None)
    assert caught.value.retry_after_seconds is not None and caught.value.retry_after_seconds > 0
    gated_ranker.gate.set()
    assert len(await waiting) == 3
    await first
    assert len(await batcher.submit(["d"], SCOPE, gated_ranker.rank, None)) == 1


async def test_a_request_larger_than_the_queue_is_too_large(make_batcher: MakeBatcher, gated_ranker):
    with pytest.raises(TooLarge):
        await make_batcher(max_waiting=3).submit(["a"] * 4, SCOPE, gated_ranker.rank, None)


async def test_one_query_that_cannot_be_ranked_fails_alone(make_batcher: MakeBatcher, gated_ranker, metrics):
    queries = ["a", "bb", "poison", "dddd", "eeeee"]
    answer = await make_batcher().submit(queries, SCOPE, gated_ranker.rank, None)
    assert [type(ranking) for ranking in answer] == [RankedRows, RankedRows, RankingFailure, RankedRows, RankedRows]
    assert isinstance(answer[2], RankingFailure)
    assert "cannot rank this" not in answer[2].message  # an unexpected error's text stays in the log
    assert metrics.failed_queries._value.get() == 1


async def test_an_abandoned_request_is_not_ranked(make_batcher: MakeBatcher, gated_ranker, metrics: RetrieverMetrics):
    batcher = make_batcher()
    first = await hold(batcher, gated_ranker)
    abandoned = asyncio.create_task(batcher.submit(["gone"], SCOPE, gated_ranker.rank, None))
    kept = asyncio.create_task(batcher.submit(["kept"], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)
    abandoned.cancel()
    await asyncio.wait([abandoned])
    gated_ranker.gate.set()
    await asyncio.gather(first, kept)
    assert gated_ranker.batches == [["first"], ["kept"]]
    assert metrics.abandoned._value.get() == 1
    assert abandoned.cancelled()


async def test_a_request_whose_turn_comes_too_late_is_not_ranked(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher()
    first = await hold(batcher, gated_ranker)
    late = asyncio.create_task(batcher.submit(["late"], SCOPE, gated_ranker.rank, 0.01))
    await asyncio.sleep(0.02)  # longer than the deadline of 0.01 s
    gated_ranker.gate.set()
    with pytest.raises(DeadlineExceeded):
        await late
    await first
    assert gated_ranker.batches == [["first"]]


async def test_closing_fails_waiting_and_later_requests(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher()
    first = await hold(batcher, gated_ranker)
    waiting = asyncio.create_task(batcher.submit(["a"], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    while not batcher._is_closed:
        await asyncio.sleep(0.001)
    gated_ranker.gate.set()
    await closing
    assert len(await first) == 1
    for late in (waiting, batcher.submit(["b"], SCOPE, gated_ranker.rank, None)):
        with pytest.raises(Unavailable, match="stopping"):
            await late


async def test_an_idle_owner_waits_only_briefly_for_more_queries(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher(wait_milliseconds=1.0)
    started = time.monotonic()
    await batcher.submit(["a"], SCOPE, gated_ranker.rank, None)
    assert time.monotonic() - started < 0.5  # the wait is 1 ms; the rest is margin for a busy machine


async def test_a_large_request_delays_a_small_one_by_one_batch(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher(max_batch=10, max_waiting=1000)
    first = await hold(batcher, gated_ranker)
    large = asyncio.create_task(batcher.submit([f"q{n}" for n in range(200)], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)
    small = asyncio.create_task(batcher.submit(["small"], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)
    gated_ranker.gate.set()
    await asyncio.gather(first, large, small)
    assert next(at for at, batch in enumerate(gated_ranker.batches) if "small" in batch) == 1
    assert scores_of(large.result()) == [float(len(f"q{n}")) for n in range(200)]


async def test_a_cancelled_caller_frees_its_place_in_the_queue(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher(max_waiting=3)
    first = await hold(batcher, gated_ranker)
    for _ in range(20):
        leaving = asyncio.create_task(batcher.submit(["a", "b", "c"], SCOPE, gated_ranker.rank, None))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    kept = asyncio.create_task(batcher.submit(["a", "b", "c"], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)
    gated_ranker.gate.set()
    assert len(await kept) == 3
    await first


async def test_deadlines_are_checked_before_each_scan(make_batcher: MakeBatcher, gated_ranker):
    batcher = make_batcher()
    first = await hold(batcher, gated_ranker)
    scopes = [SCOPE._replace(filters=(("world", str(n)),)) for n in range(5)]
    late = [asyncio.create_task(batcher.submit(["late"], scope, gated_ranker.rank, 0.01)) for scope in scopes]
    await asyncio.sleep(0.02)  # longer than the deadline of 0.01 s
    kept = asyncio.create_task(batcher.submit(["kept"], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)
    gated_ranker.gate.set()
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert all(isinstance(outcome, DeadlineExceeded) for outcome in outcomes)
    await asyncio.gather(first, kept)
    assert gated_ranker.batches == [["first"], ["kept"]]


class Panic(BaseException):
    """Like a panic of native code; it is not an Exception."""


class BreakingRanker:
    """A ranker that raises ``error`` while it is set."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.calls = 0

    def rank(self, queries, top_k, filters) -> list[RankedRows]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return [RankedRows([0], [1.0]) for _ in queries]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), Panic("index out of bounds"), MemoryError()])
async def test_a_failing_ranker_ends_readiness_until_a_ranking_succeeds(
    make_batcher: MakeBatcher, metrics: RetrieverMetrics, error: BaseException
) -> None:
    health, ranker = Health(), BreakingRanker()
    health.set_ready()
    batcher = make_batcher(health=health, not_ready_after=3, probe_seconds=0.01)
    ranker.error = error
    for number in range(3):
        assert health.ready
        (failure,) = await batcher.submit([f"query {number}"], SCOPE, ranker.rank, None)
        assert isinstance(failure, RankingFailure) and failure.kind is ErrorKind.INTERNAL
    async with asyncio.timeout(10):
        while health.ready:
            await asyncio.sleep(0.001)
    assert health.alive and "query batcher" in health.reason and count_of(metrics) >= 3
    ranker.error = None
    async with asyncio.timeout(10):  # without any request: a probe notices
        while not health.ready:
            await asyncio.sleep(0.001)
    assert isinstance((await batcher.submit(["again"], SCOPE, ranker.rank, None))[0], RankedRows)


async def test_one_failing_query_that_is_repeated_does_not_end_readiness(
    make_batcher: MakeBatcher, gated_ranker, metrics: RetrieverMetrics
) -> None:
    health = Health()
    health.set_ready()
    batcher = make_batcher(health=health, not_ready_after=3, probe_seconds=60)
    for _ in range(10):
        (failure,) = await batcher.submit(["poison"], SCOPE, gated_ranker.rank, None)
        assert isinstance(failure, RankingFailure)
    assert health.ready and count_of(metrics) == 1


async def test_a_broken_ranker_is_not_asked_once_for_every_query(make_batcher: MakeBatcher) -> None:
    ranker = BreakingRanker()
    ranker.error = RuntimeError("broken")
    answer = await make_batcher(probe_seconds=60).submit([f"q{n}" for n in range(500)], SCOPE, ranker.rank, None)
    # isolating failing queries of a batch of n may take 2 * ceil(log2(n + 1)) + 2 calls, which is 22 for n = 512
    assert all(isinstance(found, RankingFailure) for found in answer) and ranker.calls <= 22


async def test_requests_fail_once_the_owner_thread_has_ended(
    make_batcher: MakeBatcher, gated_ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health()
    health.set_ready()
    batcher = make_batcher(health=health)
    first = await hold(batcher, gated_ranker)
    waiting = asyncio.create_task(batcher.submit(["a"], SCOPE, gated_ranker.rank, None))
    await asyncio.sleep(0)

    def broken(max_queries: int) -> None:
        raise Panic("the loop itself")

    monkeypatch.setattr(batcher._queue, "take_batch", broken)
    gated_ranker.gate.set()
    await first
    for late in (waiting, batcher.submit(["b"], SCOPE, gated_ranker.rank, None)):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(late, 10)
    assert not health.alive


async def test_repeating_a_failing_query_does_not_restore_readiness(
    make_batcher: MakeBatcher, metrics: RetrieverMetrics
) -> None:
    health, ranker = Health(), BreakingRanker()
    health.set_ready()
    batcher = make_batcher(health=health, not_ready_after=2, probe_seconds=60)
    ranker.error = RuntimeError("broken")
    for query in ("a", "a", "b", "b", "b"):
        (failure,) = await batcher.submit([query], SCOPE, ranker.rank, None)
        assert isinstance(failure, RankingFailure) and failure.kind is ErrorKind.INTERNAL
    async with asyncio.timeout(10):
        while batcher._failed_batch is None or health.ready:
            await asyncio.sleep(0.001)
    await batcher.submit(["b"], SCOPE, ranker.rank, None)
    # After this call, the outcome of the previous one is recorded.
    (failure,) = await batcher.submit(["b"], SCOPE, ranker.rank, None)
    assert not health.ready and count_of(metrics) == 2


async def test_replacing_a_failing_index_restores_readiness_without_traffic(
    metrics: RetrieverMetrics,
) -> None:
    health, broken, works = Health(), BreakingRanker(), BreakingRanker()
    health.set_ready()
    broken.error = RuntimeError("broken")
    in_service = [(SCOPE, broken.rank)]
    batching = BatchingSettings(not_ready_after=1)
    batcher = QueryBatcher(batching, metrics, health, lambda: in_service[0], probe_seconds=0.01)
    await batcher.submit(["a"], SCOPE, broken.rank, None)
    async with asyncio.timeout(10):
        while health.ready or broken.calls < 5:
            await asyncio.sleep(0.001)
        assert not health.ready
        in_service[0] = (SCOPE._replace(generation="g2"), works.rank)
        while not health.ready:
            await asyncio.sleep(0.001)
    assert works.calls == 1
    batcher.close()
