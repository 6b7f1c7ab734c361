"""Supervised threads that own a resource: a failed job does not end them, and no caller waits for one that has ended.

Who runs where: callers queue work from any thread or task, under a lock of the owner. Only the owner thread takes work,
does it and touches the resource; whoever closes it may also refuse what is queued. ``FailureWatch.ended`` is set before
the queue is refused, and callers check it under the same lock that the refusal takes: work is either refused when it is
queued, or answered later, never forgotten.
"""

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

# Every other kind concerns a single call: its input, its deadline, or an overload.
_OWNER_ERRORS = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE})
CLOSE_SECONDS = 30.0
"""How long closing waits for the job in progress; threads are daemons, so a job that hangs does not block the exit."""


class FailureWatch:
    """Logs and counts what jobs raise, and decides when their owner is failing or has to give up.

    A job that is refused because of its caller (with ``InvalidRequest``, say) is not a failure of the owner.

    Args:
        name: name of the owner in logs, probes and messages to callers.
        count: called once per failure, e.g. a counter's ``inc``.
        not_ready_after: this many consecutive failures end readiness; the next success restores it.
        give_up_after: this many consecutive failures end the owner, and liveness with it.
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
            Unavailable: the owner has ended.
        """
        if self.ended is not None:
            # A new exception for each caller: raising appends to an exception's traceback, so a shared one would grow
            # without limit and mix the stacks of several threads.
            raise Unavailable(str(self.ended), self.ended.retry_after_seconds)

    def record_success(self) -> None:
        """Note that a job succeeded: the count of consecutive failures starts again."""
        self._in_a_row = 0
        if self._not_ready_after is not None and self._health is not None:
            self._health.set_working(self.name)

    def record_failure(self, error: BaseException) -> Exception:
        """Note that a job raised ``error``; return the exception that its callers receive."""
        answer = _error_for_callers(error, self.name)
        # A job refused because of its caller neither adds to the count nor resets it: it does not show whether the
        # resource works. Otherwise one client that sends bad requests could make a pod unready.
        if answer is error and (not isinstance(error, ServiceError) or error.kind not in _OWNER_ERRORS):
            return answer
        self._note(error, "a job failed")
        # No lock: only the owner thread counts (or the one task of ``run_rounds``).
        self._in_a_row += 1
        if self._give_up_after is not None and self._in_a_row >= self._give_up_after:
            self.end(f"{self.name} gave up after {self._in_a_row} failures in a row")
        elif self._not_ready_after is not None and self._in_a_row >= self._not_ready_after and self._health:
            self._health.set_failing(self.name, f"{self._in_a_row} failures in a row")
        return answer

    def record_breakdown(self, error: BaseException) -> None:
        """Note that the owner's own loop raised ``error``, which ends it."""
        self._note(error, "the owner thread broke")
        self.end(f"{self.name} has broken down")

    def end(self, reason: str, retry_after_seconds: float | None = 1.0) -> None:
        """Refuse all work from now on, and end liveness."""
        self.ended = self.ended or Unavailable(reason, retry_after_seconds)
        if self._health is not None:
            self._health.set_dead(reason)

    def close(self) -> None:
        """Refuse all work from now on, without a failure; liveness stays."""
        # The first reason is kept: after a breakdown callers must not read "closed", which suggests an ordinary stop.
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
        """Give ``error`` to the callers of ``work``; parts of it may have been answered already."""
        ...

    def refuse_work(self, error: Unavailable) -> None:
        """Answer every caller that still waits, because the thread ends.

        Later work is refused by ``watch.check``. Callers queue work under a lock that this method takes as well, and
        call ``watch.check`` inside it, so that no work is queued after this method has emptied the queue.
        """
        ...


class OwnerThread(Generic[Work]):
    """Runs an ``Owner`` in a daemon thread.

    Whatever work raises, panics of native code included, fails that work only. If the loop itself raises, the thread
    ends and all waiting callers are refused.
    """

    def __init__(self, owner: Owner[Work], watch: FailureWatch) -> None:
        self._owner = owner
        self._watch = watch
        self._thread = threading.Thread(target=self._run, name=watch.name.replace(" ", "-"), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float | None = CLOSE_SECONDS) -> bool:
        """Wait for the end of the thread; False, and a warning, if it is still running after ``timeout`` seconds."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("a job does not end", extra={"data": {"owner": self._watch.name, "seconds": timeout}})
            return False
        return True

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._watch.ended is None and (work := self._owner.take_work()) is not None:
                self._do(work)
                del work  # while the thread waits for more, it must not hold what the last work referred to
        # Not only Exception: the panic of an extension written in Rust arrives as pyo3's PanicException, which
        # derives from BaseException, so that ``except Exception`` lets it pass.
        except BaseException as error:  # noqa: BLE001 - outermost level of the thread
            self._watch.record_breakdown(error)
        finally:
            self._watch.close()  # before the queue is emptied, so that nothing is queued afterwards
            self._refuse()

    def _do(self, work: Work) -> None:
        try:
            self._owner.do_work(work)
        except BaseException as error:  # noqa: BLE001 - whatever one job raises, the next one is run
            answer = self._watch.record_failure(error)
            # Not guarded on purpose: if even this raises, some caller may never be answered, so the thread ends,
            # liveness fails and the process is replaced.
            self._owner.fail_work(work, answer)
        else:
            self._watch.record_success()

    def _refuse(self) -> None:
        assert self._watch.ended is not None
        try:
            self._owner.refuse_work(self._watch.ended)
        except BaseException as error:  # noqa: BLE001 - the last thing that the thread does
            self._watch.record_breakdown(error)


Job = Callable[[Resource], Any]
Queued = tuple[Job[Any], Future[Any]]


class JobThread(Generic[Resource]):
    """Opens, uses and closes a resource in one thread; jobs are functions of the resource, run in order.

    Args:
        open_resource: opens the resource, when the first job runs; if it raises, that job fails; the next one retries.
        perform: runs several jobs at once and returns their results, e.g. in one transaction; if it raises, all of
            them fail.
        largest_batch: most jobs given to ``perform`` at once.
        close_resource: closes the resource.
    """

    def __init__(
        self,
        watch: FailureWatch,
        open_resource: Callable[[], Resource],
        *,
        perform: Callable[[Resource, Sequence[Job[Resource]]], Sequence[Any]] | None = None,
        largest_batch: int = 1,
        close_resource: Callable[[Resource], object] | None = None,
    ) -> None:
        self._watch = watch
        self._open_resource = open_resource
        self._perform = perform or _one_by_one
        self._largest_batch = largest_batch
        self._close_resource = close_resource
        self._resources: list[Resource] = []  # at most one; only the owner thread touches it
        self._queue: deque[Queued] = deque()
        self._changed = threading.Condition()  # guards the queue and ``_closing``
        self._closing = False
        self._thread = OwnerThread[list[Queued]](self, watch)
        self._thread.start()

    def submit(self, job: Callable[[Resource], Result], *, can_be_cancelled: bool = True) -> "Future[Result]":
        """Queue a job.

        Args:
            can_be_cancelled: if False, the job runs even if its caller has stopped waiting.

        Raises:
            Unavailable: the thread has ended or is closing.
        """
        future: Future[Result] = Future()
        if not can_be_cancelled:
            # ``Future.cancel`` has no effect on a running future, so marking it here is what protects the job.
            future.set_running_or_notify_cancel()
        with self._changed:
            if self._closing:
                raise Unavailable(f"{self._watch.name} is closed")
            # Inside the lock: between a check outside it and the append, the thread could end and empty the queue,
            # and this future would never be answered.
            self._watch.check()
            self._queue.append((job, future))
            self._changed.notify()
        return future

    async def call(self, job: Callable[[Resource], Result]) -> Result:
        """Queue a job and wait for its result; cancelling the caller also cancels a job that has not started."""
        return await asyncio.wrap_future(self.submit(job))

    def close(self, *, finish: bool = True, timeout: float | None = CLOSE_SECONDS) -> None:
        """End the thread after the queued jobs; with ``finish=False`` refuse these and end it after the current job."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if not finish:
            self._refuse_queued(Unavailable(f"{self._watch.name} is closed"))
        # The current job hangs, and the thread with it. The jobs behind it will not run, so their callers are refused
        # from here; only the caller of the job that hangs still waits.
        if not self._thread.join(timeout):
            self._watch.close()
            self._refuse_queued(Unavailable(f"{self._watch.name} is closed"))

    def take_work(self) -> list[Queued] | None:
        """See ``Owner``."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            # An empty batch (None) is possible only when closing: ``wait_for`` returns for a job or for ``_closing``,
            # and queued jobs come first. So closing runs what is queued before it ends the thread.
            return [self._queue.popleft() for _ in range(min(self._largest_batch, len(self._queue)))] or None

    def do_work(self, work: list[Queued]) -> None:
        """See ``Owner``."""
        # ``set_running_or_notify_cancel`` returns False for a job that its caller cancelled while it was queued, and
        # raises for a future that ``submit`` has already marked as running; hence the test for ``running`` first.
        wanted = [(job, future) for job, future in work if future.running() or future.set_running_or_notify_cancel()]
        if not wanted:
            return
        if not self._resources:
            self._resources.append(self._open_resource())
        # No future is answered before all results are there: if ``perform`` raises, e.g. because its transaction was
        # rolled back, no caller may have been told that its job succeeded.
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
        if self._resources and self._close_resource is not None:
            self._close_resource(self._resources.pop())

    def _refuse_queued(self, error: Unavailable) -> None:
        with self._changed:
            refused = list(self._queue)
            self._queue.clear()
        # Outside the lock: ``set_exception`` runs the future's callbacks in this thread, and they may take other
        # locks.
        for _, future in refused:
            if future.running() or future.set_running_or_notify_cancel():
                future.set_exception(Unavailable(str(error), error.retry_after_seconds))


async def run_rounds(perform: Callable[[], Awaitable[object]], interval_seconds: float, watch: FailureWatch) -> None:
    """Call ``perform`` every ``interval_seconds``; a round that raises is logged, counted, and followed by the next.

    Returns only if ``watch`` gives up; otherwise it runs until cancelled.
    """
    while watch.ended is None:
        # With an interval of 0 this still lets other tasks run: a ``perform`` that fails before its first await would
        # otherwise occupy the event loop for good.
        await asyncio.sleep(interval_seconds)
        try:
            await perform()
        # How the service ends the rounds; caught below, it would count as a failure and the task could not be
        # cancelled.
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a failed round must not end the rounds
            watch.record_failure(error)
        else:
            watch.record_success()


def _one_by_one(resource: Resource, jobs: Sequence[Job[Resource]]) -> Sequence[Any]:
    return [job(resource) for job in jobs]


def _error_for_callers(error: BaseException, name: str) -> Exception:
    """Return expected failures unchanged; hide anything else from callers, with the original as ``__cause__``."""
    if isinstance(error, ServiceError | ConfigurationError):
        return error
    hidden = ServiceError(f"internal error in {name}")
    hidden.__cause__ = error
    return hidden
