"""Supervised threads that own a resource: they survive their jobs, and nobody waits for one that has ended."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from searchrl.errors import ConfigurationError, ErrorKind, ServiceError, Unavailable
from searchrl.platform.health import Health

logger = logging.getLogger(__name__)

Work = TypeVar("Work")
Resource = TypeVar("Resource")
Result = TypeVar("Result")

_OWN_FAULTS = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE})
CLOSE_SECONDS = 30.0


class FailureWatch:
    """Logs and counts what jobs raise, and decides when their owner is failing or has to give up.

    A job that is refused for its caller's own fault (``InvalidRequest``, say) is not a failure of the owner.

    Args:
        name: of the owner, as logs, probes and callers are told it.
        count: called once per failure, e.g. a counter's ``inc``.
        not_ready_after: so many failures in a row take readiness away; the next job that succeeds gives it back.
        give_up_after: so many failures in a row end the owner, and liveness with it.
    """

    def __init__(
        self,
        name: str,
        *,
        health: Health | None = None,
        count: Callable[[], object] | None = None,
        not_ready_after: int | None = None,
        give_up_after: int | None = None,
    ) -> None:
        self.name = name
        self.ended: Unavailable | None = None
        self._health = health
        self._count = count
        self._not_ready_after = not_ready_after
        self._give_up_after = give_up_after
        self._in_a_row = 0

    def check(self) -> None:
        """Refuse new work once the owner has ended.

        Raises:
            Unavailable: it has.
        """
        if self.ended is not None:
            raise Unavailable(str(self.ended), self.ended.retry_after_seconds)

    def succeeded(self) -> None:
        """A job was done: whatever failed before, the owner works again."""
        self._in_a_row = 0
        if self._not_ready_after is not None and self._health is not None:
            self._health.set_working(self.name)

    def failed(self, error: BaseException) -> Exception:
        """Note that a job raised ``error``; returns what its callers are told."""
        told = _told(error, self.name)
        if told is error and (not isinstance(error, ServiceError) or error.kind not in _OWN_FAULTS):
            return told
        self._note(error, "a job failed")
        self._in_a_row += 1
        if self._give_up_after is not None and self._in_a_row >= self._give_up_after:
            self.end(f"{self.name} gave up after {self._in_a_row} failures in a row")
        elif self._not_ready_after is not None and self._in_a_row >= self._not_ready_after and self._health:
            self._health.set_failing(self.name, f"{self._in_a_row} failures in a row")
        return told

    def broke(self, error: BaseException) -> None:
        """Note that the owner's own loop raised ``error``: it cannot go on."""
        self._note(error, "the owner thread broke")
        self.end(f"{self.name} has broken down")

    def end(self, reason: str, retry_after_seconds: float | None = 1.0) -> None:
        """Refuse all work from now on, and end liveness."""
        self.ended = self.ended or Unavailable(reason, retry_after_seconds)
        if self._health is not None:
            self._health.set_dead(reason)

    def close(self) -> None:
        """Refuse all work from now on, as planned."""
        self.ended = self.ended or Unavailable(f"{self.name} is closed")

    def _note(self, error: BaseException, what: str) -> None:
        logger.error(f"{what}", exc_info=error, extra={"data": {"owner": self.name}})
        if self._count is not None:
            self._count()


class Owner(Protocol[Work]):
    """What runs in an ``OwnerThread``; every method is called in that thread only."""

    def take_work(self) -> Work | None:
        """Wait for work; None ends the thread."""
        ...

    def do_work(self, work: Work) -> None: ...

    def fail_work(self, work: Work, error: Exception) -> None:
        """Answer those who wait for ``work``, which raised; parts of it may have been answered already."""
        ...

    def refuse_work(self, error: Unavailable) -> None:
        """Answer everybody who still waits: the thread ends. Later work is refused by ``watch.check``.

        Callers queue under a lock that this takes, too, and call ``watch.check`` inside it: nobody slips in between.
        """
        ...


class OwnerThread(Generic[Work]):
    """Runs an ``Owner`` in a thread. Whatever work raises, native panics included, fails that work alone; where the
    loop itself breaks, nobody is left waiting for it.
    """

    def __init__(self, owner: Owner[Work], watch: FailureWatch) -> None:
        self._owner = owner
        self._watch = watch
        self._thread = threading.Thread(target=self._run, name=watch.name.replace(" ", "-"), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float | None = CLOSE_SECONDS) -> bool:
        """Wait for the end of the thread; False if it is still at work after ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._watch.ended is None and (work := self._owner.take_work()) is not None:
                self._do(work)
        except BaseException as error:  # noqa: BLE001 - the border of the thread
            self._watch.broke(error)
        finally:
            self._watch.close()
            self._refuse()

    def _do(self, work: Work) -> None:
        try:
            self._owner.do_work(work)
        except BaseException as error:  # noqa: BLE001 - whatever one job raises, the next one gets its turn
            told = self._watch.failed(error)
            self._owner.fail_work(work, told)
        else:
            self._watch.succeeded()

    def _refuse(self) -> None:
        assert self._watch.ended is not None
        try:
            self._owner.refuse_work(self._watch.ended)
        except BaseException as error:  # noqa: BLE001 - the last thing that the thread does
            self._watch.broke(error)


Job = Callable[[Resource], Any]
Queued = tuple[Job[Any], Future[Any]]


class JobThread(Generic[Resource]):
    """Owns a resource, opened, used and closed in one thread; jobs are functions of it, done in their order.

    Args:
        opened: opens the resource. What it raises is told to every job.
        perform: does several jobs at once and returns their results, e.g. in one transaction; what it raises fails
            them all.
        closed: closes the resource.
    """

    def __init__(
        self,
        watch: FailureWatch,
        opened: Callable[[], Resource],
        *,
        perform: Callable[[Resource, Sequence[Job[Resource]]], Sequence[Any]] | None = None,
        largest_batch: int = 1,
        closed: Callable[[Resource], object] | None = None,
    ) -> None:
        self._watch = watch
        self._opened = opened
        self._perform = perform or _one_by_one
        self._largest_batch = largest_batch
        self._closed = closed
        self._resources: list[Resource] = []
        self._queue: deque[Queued] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = OwnerThread[list[Queued]](self, watch)
        self._thread.start()

    def submit(self, job: Callable[[Resource], Result], *, can_be_cancelled: bool = True) -> "Future[Result]":
        """Queue a job.

        Args:
            can_be_cancelled: False: it is done even if nobody waits for it any more.

        Raises:
            Unavailable: the thread has ended, or is about to.
        """
        future: Future[Result] = Future()
        if not can_be_cancelled:
            future.set_running_or_notify_cancel()
        with self._changed:
            if self._closing:
                raise Unavailable(f"{self._watch.name} is closed")
            self._watch.check()
            self._queue.append((job, future))
            self._changed.notify()
        return future

    async def call(self, job: Callable[[Resource], Result]) -> Result:
        """Queue a job and wait for its result; a caller that is cancelled takes back a job that has not begun."""
        return await asyncio.wrap_future(self.submit(job))

    def close(self, *, finish: bool = True, timeout: float | None = CLOSE_SECONDS) -> None:
        """End the thread after what is queued (or after the job in hand, refusing what is queued)."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if not finish:
            self._refuse_queued(Unavailable(f"{self._watch.name} is closed"))
        if not self._thread.join(timeout):
            logger.error("a job does not end", extra={"data": {"owner": self._watch.name, "seconds": timeout}})
            self._watch.close()
            self._refuse_queued(Unavailable(f"{self._watch.name} is closed"))

    def take_work(self) -> list[Queued] | None:
        """See ``Owner``."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return [self._queue.popleft() for _ in range(min(self._largest_batch, len(self._queue)))] or None

    def do_work(self, work: list[Queued]) -> None:
        """See ``Owner``."""
        wanted = [(job, future) for job, future in work if future.running() or future.set_running_or_notify_cancel()]
        if not wanted:
            return
        if not self._resources:
            self._resources.append(self._opened())
        results = self._perform(self._resources[0], [job for job, _ in wanted])
        for (_, future), result in zip(wanted, results, strict=True):
            future.set_result(result)

    def fail_work(self, work: list[Queued], error: Exception) -> None:
        """See ``Owner``."""
        for _, future in work:
            if not future.done():
                future.set_exception(error)

    def refuse_work(self, error: Unavailable) -> None:
        """See ``Owner``."""
        self._refuse_queued(error)
        if self._resources and self._closed is not None:
            self._closed(self._resources.pop())

    def _refuse_queued(self, error: Unavailable) -> None:
        with self._changed:
            refused = list(self._queue)
            self._queue.clear()
        for _, future in refused:
            if future.running() or future.set_running_or_notify_cancel():
                future.set_exception(Unavailable(str(error), error.retry_after_seconds))


async def run_rounds(perform: Callable[[], Awaitable[object]], interval_seconds: float, watch: FailureWatch) -> None:
    """Call ``perform`` again and again; a round that raises is logged and counted, and the next one is tried.

    Returns only where ``watch`` gives up; ends by cancellation otherwise.
    """
    while watch.ended is None:
        await asyncio.sleep(interval_seconds)
        try:
            await perform()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - one bad round must not be the last one
            watch.failed(error)
        else:
            watch.succeeded()


def _one_by_one(resource: Resource, jobs: Sequence[Job[Resource]]) -> Sequence[Any]:
    return [job(resource) for job in jobs]


def _told(error: BaseException, name: str) -> Exception:
    """Expected failures as they are; anything else is hidden from callers, and kept as the cause for those inside."""
    if isinstance(error, ServiceError | ConfigurationError):
        return error
    hidden = ServiceError(f"internal error in {name}")
    hidden.__cause__ = error
    return hidden
