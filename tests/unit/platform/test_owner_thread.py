"""Owner threads: whatever a job raises fails only that job, and no caller waits for an owner that has ended."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from searchrl.errors import ConfigurationError, InvalidRequest, ServiceError, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, JobThread, OwnerThread, run_rounds

LONG = 30.0
"""Timeout in seconds of waits that end at once unless the code is wrong."""


class NativePanic(BaseException):
    """Like what extensions written in Rust raise; it is not an Exception."""


class Counted:
    """A failure watch with its health and its count of failures."""

    def __init__(self, **options: Any) -> None:
        self.failures = 0
        self.health = Health()
        self.health.set_ready()
        self.watch = FailureWatch("row owner", health=self.health, count=self._count, **options)

    def _count(self) -> None:
        self.failures += 1


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def jobs(counted: Counted) -> Iterator[JobThread[list[int]]]:
    thread = JobThread[list[int]](counted.watch, list)
    yield thread
    thread.close(finish=False)


def fail_with(error: BaseException) -> Callable[[object], object]:
    def job(_: object) -> object:
        raise error

    return job


@pytest.mark.parametrize(
    "error", [NativePanic("secret"), KeyboardInterrupt("secret"), SystemExit("secret"), MemoryError(), StopIteration()]
)
def test_whatever_a_job_raises_fails_that_job_and_the_next_one_is_done(
    error: BaseException, counted: Counted, jobs: JobThread[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    failing = jobs.submit(fail_with(error))
    following = jobs.submit(lambda owned: owned.append(1))
    told = failing.exception(LONG)
    assert isinstance(told, ServiceError)
    assert "secret" not in str(told)
    assert told.__cause__ is error
    assert following.result(LONG) is None
    assert counted.failures == 1
    assert caplog.records[0].exc_info is not None
    assert counted.health.ready


@pytest.mark.parametrize("error", [InvalidRequest("no such row"), ConfigurationError("no such folder")])
def test_expected_failures_reach_the_caller_as_they_are_and_are_not_counted(
    error: Exception, counted: Counted, jobs: JobThread[list[int]]
) -> None:
    assert jobs.submit(fail_with(error)).exception(LONG) is error
    assert counted.failures == 0


async def test_a_coroutine_gets_the_error_too(jobs: JobThread[list[int]]) -> None:
    with pytest.raises(ServiceError, match="internal error in row owner"):
        await jobs.call(fail_with(NativePanic()))
    assert await jobs.call(lambda owned: len(owned)) == 0


def test_failures_in_a_row_end_readiness_until_a_job_succeeds() -> None:
    counted = Counted(not_ready_after=2)
    jobs = JobThread[None](counted.watch, lambda: None)
    jobs.submit(fail_with(NativePanic())).exception(LONG)
    assert counted.health.ready
    jobs.submit(fail_with(Unavailable("gone"))).exception(LONG)
    jobs.submit(fail_with(InvalidRequest("bad"))).exception(LONG)
    assert not counted.health.ready
    assert counted.health.alive
    jobs.submit(lambda _: None).result(LONG)
    jobs.close()
    assert counted.health.ready


def test_an_owner_that_gives_up_refuses_what_is_queued_and_what_comes_later() -> None:
    counted = Counted(give_up_after=2)
    jobs = JobThread[None](counted.watch, lambda: None)
    held = threading.Event()
    jobs.submit(lambda _: held.wait(LONG))
    failing = [jobs.submit(fail_with(NativePanic())) for _ in range(2)]
    queued = jobs.submit(lambda _: "never done")
    held.set()
    assert all(isinstance(job.exception(LONG), ServiceError) for job in failing)
    assert isinstance(queued.exception(LONG), Unavailable)
    assert not counted.health.alive
    with pytest.raises(Unavailable, match="gave up after 2 failures in a row"):
        jobs.submit(lambda _: None)
    jobs.close()


class BrokenLoop:
    """An owner with one waiting job, whose loop fails at the given method."""

    def __init__(self, breaking: str) -> None:
        self.breaking = breaking
        self.waiting: Future[None] = Future()
        self.in_hand: Future[None] = Future()

    def take_work(self) -> str | None:
        if self.breaking == "take":
            raise NativePanic("the loop")
        return "work"

    def do_work(self, work: str) -> None:
        raise NativePanic("the job")

    def fail_work(self, work: str, error: Exception) -> None:
        self.in_hand.set_exception(error)
        raise NativePanic("failing the job")

    def refuse_work(self, error: Unavailable) -> None:
        self.waiting.set_exception(error)


@pytest.mark.parametrize("breaking", ["take", "fail"])
def test_a_loop_that_breaks_ends_liveness_and_leaves_nobody_waiting(breaking: str, counted: Counted) -> None:
    owner = BrokenLoop(breaking)
    thread = OwnerThread(owner, counted.watch)
    thread.start()
    assert isinstance(owner.waiting.exception(LONG), Unavailable)
    assert thread.join(LONG)
    assert (counted.health.ready, counted.health.alive) == (False, False)
    assert counted.health.reason == "row owner has broken down"
    with pytest.raises(Unavailable):
        counted.watch.check()


class ForgottenWork:
    """An owner whose only work is an object; the next call for work checks that nothing holds it any longer."""

    def __init__(self) -> None:
        self.given: weakref.ref[Health] | None = None
        self.is_freed: bool | None = None

    def take_work(self) -> Health | None:
        if self.given is not None:
            self.is_freed = self.given() is None
            return None
        work = Health()
        self.given = weakref.ref(work)
        return work

    def do_work(self, work: Health) -> None: ...

    def fail_work(self, work: Health, error: Exception) -> None: ...

    def refuse_work(self, error: Unavailable) -> None: ...


def test_a_thread_that_waits_for_work_holds_nothing_of_the_last_one(counted: Counted) -> None:
    owner = ForgottenWork()
    thread = OwnerThread(owner, counted.watch)
    thread.start()
    assert thread.join(LONG)
    assert owner.is_freed is True


def test_closing_reports_whose_job_does_not_end(counted: Counted, caplog: pytest.LogCaptureFixture) -> None:
    jobs = JobThread[None](counted.watch, lambda: None)
    held, begun = threading.Event(), threading.Event()
    jobs.submit(lambda _: (begun.set(), held.wait(LONG)))
    assert begun.wait(LONG)
    jobs.close(timeout=0.0)
    assert [(record.message, record.data["owner"]) for record in caplog.records] == [  # pyright: ignore[reportAttributeAccessIssue]
        ("a job does not end", "row owner")
    ]
    held.set()


def test_jobs_queued_while_the_loop_breaks_are_refused(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = JobThread[None](counted.watch, lambda: None)
    held, begun = threading.Event(), threading.Event()
    jobs.submit(lambda _: (begun.set(), held.wait(LONG)))
    assert begun.wait(LONG)
    queued = [jobs.submit(lambda _: None) for _ in range(3)]
    monkeypatch.setattr(jobs, "take_work", lambda: fail_with(NativePanic())(None))
    held.set()
    assert all(isinstance(job.exception(LONG), Unavailable) for job in queued)
    with pytest.raises(Unavailable):
        jobs.submit(lambda _: None)


def test_several_jobs_are_done_at_once_and_fail_together(counted: Counted) -> None:
    sizes: list[int] = []

    def perform(owned: None, batch: Any) -> list[Any]:
        sizes.append(len(batch))
        return [job(owned) for job in batch]

    jobs = JobThread[None](counted.watch, lambda: None, perform=perform, largest_batch=3)
    held, begun = threading.Event(), threading.Event()
    jobs.submit(lambda _: (begun.set(), held.wait(LONG)))
    assert begun.wait(LONG)
    bad = [jobs.submit(lambda _: 1), jobs.submit(fail_with(NativePanic())), jobs.submit(lambda _: 3)]
    good = [jobs.submit(lambda _, number=number: number) for number in range(2)]
    held.set()
    assert all(isinstance(job.exception(LONG), ServiceError) for job in bad)
    assert [job.result(LONG) for job in good] == [0, 1]
    jobs.close()
    assert sizes == [1, 3, 2]


def test_closing_does_what_is_queued_and_closes_the_resource_in_its_own_thread(counted: Counted) -> None:
    threads: list[str] = []
    jobs = JobThread[list[int]](
        counted.watch,
        lambda: threads.append(threading.current_thread().name) or [],
        close_resource=lambda _: threads.append(threading.current_thread().name),
    )
    done = [jobs.submit(lambda owned, number=number: owned.append(number)) for number in range(5)]
    jobs.close()
    assert all(job.done() for job in done)
    assert threads == ["row-owner", "row-owner"]
    assert counted.health.alive
    with pytest.raises(Unavailable, match="closed"):
        jobs.submit(lambda _: None)


def test_closing_without_finishing_refuses_what_is_queued(counted: Counted) -> None:
    jobs = JobThread[None](counted.watch, lambda: None)
    held, begun = threading.Event(), threading.Event()
    in_hand = jobs.submit(lambda _: (begun.set(), held.wait(LONG)))
    queued = jobs.submit(lambda _: None)
    assert begun.wait(LONG)
    jobs.close(finish=False, timeout=0.0)
    assert isinstance(queued.exception(LONG), Unavailable)
    held.set()
    assert in_hand.exception(LONG) is None


def test_a_cancelled_job_is_skipped_unless_it_must_be_done(counted: Counted) -> None:
    jobs = JobThread[list[str]](counted.watch, list)
    held = threading.Event()
    jobs.submit(lambda _: held.wait(LONG))
    assert jobs.submit(lambda owned: owned.append("cancelled")).cancel()
    assert not jobs.submit(lambda owned: owned.append("kept"), can_be_cancelled=False).cancel()
    held.set()
    assert jobs.submit(lambda owned: list(owned)).result(LONG) == ["kept"]
    jobs.close()


def test_a_resource_that_cannot_be_opened_fails_each_job(counted: Counted) -> None:
    def opened() -> None:
        raise OSError("/secret/path")

    jobs = JobThread[None](counted.watch, opened)
    told = jobs.submit(lambda _: None).exception(LONG)
    assert isinstance(told, ServiceError)
    assert "secret" not in str(told)
    jobs.close()


@pytest.mark.parametrize("error", [NativePanic(), KeyError("key"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")])
async def test_a_round_that_raises_is_not_the_last_one(error: BaseException, counted: Counted) -> None:
    outcomes: list[BaseException | None] = [error, None]
    done = asyncio.Event()

    async def perform() -> None:
        if not outcomes:
            done.set()
        elif (outcome := outcomes.pop(0)) is not None:
            raise outcome

    rounds = asyncio.create_task(run_rounds(perform, 0.0, counted.watch))
    await asyncio.wait_for(done.wait(), LONG)
    rounds.cancel()
    assert counted.failures == 1
    assert await asyncio.gather(rounds, return_exceptions=True) != [None]
