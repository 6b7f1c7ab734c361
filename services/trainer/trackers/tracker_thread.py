"""Feeds each tracker in a thread of its own, so that a tracker that fails or is slow never stops or delays training."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from searchrl.errors import Unavailable
from searchrl.platform.owner_thread import FailureWatch, OwnerThread
from services.trainer.trackers.base import RunEnd, TrackedStep, Tracker

logger = logging.getLogger(__name__)

QUEUED_STEPS = 256
"""Steps that wait for a tracker at most: hours of a large run, and with their samples some tens of MB."""
CLOSE_SECONDS = 15.0
"""How long the end of a run waits for its trackers; a training pod has 120 s, which its checkpoint needs as well."""
MESSAGE_CHARACTERS = 300  # servers answer with pages of HTML


class _Opening(Enum):
    OPEN = "open"


_Work = TrackedStep | RunEnd | _Opening


class TrackerThread:
    """Takes steps at once, and has them recorded by the tracker later, in order.

    The run queues steps, under the lock ``_changed``. Only the tracker's thread takes them and calls the tracker. What
    the tracker cannot record is lost there and counted: a step that made it raise, and the oldest steps while more than
    ``limit`` wait. Before the first step the tracker is opened, so that a wrong key is reported at the start.

    Args:
        count_lost: called once for each lost step, e.g. a counter's ``inc``.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        *,
        count_lost: Callable[[], object] = lambda: None,
        limit: int = QUEUED_STEPS,
    ) -> None:
        self.name = name
        self.lost = 0
        self._tracker = tracker
        self._count_lost = count_lost
        self._limit = limit
        self._queue: deque[_Work] = deque([_Opening.OPEN])
        self._changed = threading.Condition()  # guards the queue, ``lost``, ``_closing`` and ``_is_behind``
        self._closing = self._is_behind = False
        # These three are the tracker's thread's own.
        self._is_open = self._is_failing = self._has_ended = False
        self._after_step = 0
        self._watch = FailureWatch(f"tracker {name}")
        self._thread = OwnerThread[_Work](self, self._watch)
        self._is_started = False

    def start(self, after_step: int) -> None:
        """Open the tracker, in its thread; the next step is the one after ``after_step``."""
        self._after_step = after_step
        self._is_started = True
        self._thread.start()

    def record(self, step: TrackedStep) -> None:
        """Queue a step; never waits and never raises."""
        with self._changed:
            if self._closing or self._watch.ended is not None:
                self._lose(step)
                return
            if len(self._queue) >= self._limit:
                self._lose(self._queue.popleft())  # the oldest: the newest steps say how the run is
                if not self._is_behind:  # said once: a tracker that is too slow would repeat it with every step
                    self._is_behind = True
                    logger.warning(
                        "the tracker %s is %d steps behind; it loses the oldest, and training continues",
                        self.name, self._limit,
                    )  # fmt: skip
            self._queue.append(step)
            self._changed.notify()

    def request_close(self, end: RunEnd) -> None:
        """Have the tracker closed after the queued steps; does not wait."""
        with self._changed:
            if not self._closing:
                self._closing = True
                self._queue.append(end)
                self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread after ``request_close``; steps that wait longer are lost."""
        if self._is_started and not self._thread.join(timeout):
            self._lose_queued()
        if self.lost:
            logger.warning("the tracker %s lost %d steps; metrics.jsonl has them", self.name, self.lost)

    def take_work(self) -> _Work | None:
        """See ``Owner``."""
        if self._has_ended:
            return None
        with self._changed:
            self._changed.wait_for(lambda: self._queue)
            return self._queue.popleft()

    def do_work(self, work: _Work) -> None:
        """See ``Owner``; what a tracker raises is reported here, in one sentence for any number of failures."""
        self._has_ended = isinstance(work, RunEnd)
        try:
            if not self._is_open:
                self._tracker.open(self._after_step)
                self._is_open = True
            if isinstance(work, TrackedStep):
                self._after_step = work.step
                self._tracker.record(work)
            elif isinstance(work, RunEnd):
                self._tracker.close(work)
        except Exception as error:  # noqa: BLE001 - the boundary of a tracker, whose library may raise anything
            self.fail_work(work, error)
        else:
            if self._is_failing and isinstance(work, TrackedStep):
                self._is_failing = False
                logger.info("the tracker %s records again; it has lost %d steps", self.name, self.lost)

    def fail_work(self, work: _Work, error: Exception) -> None:
        """See ``Owner``."""
        self._is_open = False
        with self._changed:
            self._lose(work)
        if not self._is_failing:
            self._is_failing = True
            logger.warning("the tracker %s fails, and training continues without it: %s", self.name, _sentence(error))

    def refuse_work(self, error: Unavailable) -> None:
        """See ``Owner``."""
        self._lose_queued()

    def _lose_queued(self) -> None:
        with self._changed:
            steps = [work for work in self._queue if isinstance(work, TrackedStep)]
            ends = [work for work in self._queue if isinstance(work, RunEnd)]
            self._queue = deque(ends)  # a call that hung and returns after all: then the tracker is still closed
            for step in steps:
                self._lose(step)

    def _lose(self, work: _Work) -> None:
        if isinstance(work, TrackedStep):
            self.lost += 1
            self._count_lost()


def close_trackers(threads: Sequence[TrackerThread], end: RunEnd, seconds: float = CLOSE_SECONDS) -> None:
    """Close all trackers at the same time; after ``seconds`` those that have not ended are left to themselves."""
    for thread in threads:
        thread.request_close(end)
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _sentence(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]} ..."
