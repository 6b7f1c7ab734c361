"""Trackers that are slow, fail, hang or panic: the run never waits for them, and lost steps are counted and said."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from services.trainer.trackers.base import RunEnd, TrackedStep
from services.trainer.trackers.tracker_thread import MESSAGE_CHARACTERS, TrackerThread, close_trackers

SECONDS = 30.0  # of a wait that ends at once unless something is broken


class FakeTracker:
    """Notes its calls; what ``failures`` holds is raised by the next calls, and ``gate`` holds records back."""

    def __init__(self, *failures: BaseException | None) -> None:
        self.calls: queue.Queue[Any] = queue.Queue()
        self.failures = list(failures)
        self.gate = threading.Event()
        self.gate.set()

    def open(self, after_step: int) -> None:
        self._note(("open", after_step))

    def record(self, step: TrackedStep) -> None:
        self.calls.put(("entered", step.step))
        self.gate.wait(SECONDS)
        self._note(("record", step.step))

    def close(self, end: RunEnd) -> None:
        self._note(("close", end))

    def _note(self, call: Any) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.calls.put(call)

    def seen(self, name: str) -> list[Any]:
        """The arguments of the calls so far that raised nothing."""
        return [argument for called, argument in list(self.calls.queue) if called == name]


def step(number: int) -> TrackedStep:
    return TrackedStep(number, {"step": number, "reward": 0.5}, 100.0 + number)


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[..., tuple[TrackerThread, list[str]]]:
    """Start a thread for a tracker; it is closed with the test. Also returns what it counts."""

    def run(tracker: FakeTracker, *, limit: int = 256) -> tuple[TrackerThread, list[str]]:
        counted: list[str] = []
        thread = TrackerThread("fake", tracker, count_lost=lambda: counted.append("fake"), limit=limit)
        thread.start(after_step=4)
        request.addfinalizer(lambda: (tracker.gate.set(), close_trackers([thread], RunEnd.STOPPED, SECONDS)))
        return thread, counted

    return run


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_steps_are_recorded_in_order_and_the_tracker_is_told_how_the_run_ended(start: Any) -> None:
    tracker = FakeTracker()
    thread, counted = start(tracker)
    for number in (5, 6, 7):
        thread.record(step(number))
    close_trackers([thread], RunEnd.FINISHED, SECONDS)
    assert tracker.seen("open") == [4] and tracker.seen("record") == [5, 6, 7]
    assert tracker.seen("close") == [RunEnd.FINISHED] and counted == []


def test_a_slow_tracker_loses_the_oldest_steps_and_says_so_once(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    tracker = FakeTracker()
    thread, counted = start(tracker, limit=2)
    tracker.gate.clear()
    thread.record(step(5))
    while tracker.calls.get(timeout=SECONDS) != ("entered", 5):  # taken from the queue, and held
        pass
    for number in range(6, 11):
        thread.record(step(number))  # returns at once: nobody opens the gate before the last one
    tracker.gate.set()
    close_trackers([thread], RunEnd.FINISHED, SECONDS)
    assert tracker.seen("record") == [5, 9, 10]
    assert thread.lost == len(counted) == 3
    assert warnings(caplog) == [
        "the tracker fake is 2 steps behind; it loses the oldest, and training continues",
        "the tracker fake lost 3 steps; metrics.jsonl has them",
    ]


def test_a_tracker_that_fails_says_so_once_is_opened_again_and_reports_that_it_works(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = FakeTracker(PermissionError("bad\n key"), PermissionError("bad key"), None, OSError(28, "full"), None)
    with caplog.at_level("INFO"):
        thread, counted = start(tracker)  # the first failure is that of opening
        for number in (5, 6, 7):  # 5: opening fails again; 6: opened, and recording fails; 7: opened again
            thread.record(step(number))
        close_trackers([thread], RunEnd.FINISHED, SECONDS)
    assert tracker.seen("open") == [4, 6] and tracker.seen("record") == [7]
    assert thread.lost == len(counted) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "the tracker fake fails, and training continues without it: PermissionError: bad key",
        "the tracker fake records again; it has lost 2 steps",
        "the tracker fake lost 2 steps; metrics.jsonl has them",
    ]


def test_a_tracker_that_hangs_delays_the_end_of_the_run_for_a_limited_time(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = FakeTracker()
    thread, counted = start(tracker)
    tracker.gate.clear()
    for number in (5, 6, 7):
        thread.record(step(number))
    while tracker.calls.get(timeout=SECONDS) != ("entered", 5):
        pass
    close_trackers([thread], RunEnd.FINISHED, seconds=0.01)
    assert thread.lost == len(counted) == 2 and "the tracker fake lost 2 steps" in warnings(caplog)[-1]
    thread.record(step(8))  # the run is over for this tracker
    assert thread.lost == 3
    tracker.gate.set()
    while tracker.calls.get(timeout=SECONDS) != ("close", RunEnd.FINISHED):  # which is closed once the call returns
        pass


def test_a_panic_of_a_library_loses_a_step_and_a_page_as_message_is_cut(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Panic(BaseException):
        pass

    tracker = FakeTracker(None, Panic("rust"), ValueError("<html>" * 1000), None)
    thread, _ = start(tracker)
    for number in (5, 6, 7):
        thread.record(step(number))
    close_trackers([thread], RunEnd.FINISHED, SECONDS)
    assert tracker.seen("record") == [7] and thread.lost == 2
    assert all(len(text) < MESSAGE_CHARACTERS + 200 for text in warnings(caplog))


def test_a_run_that_ends_before_its_first_step_starts_no_tracker() -> None:
    tracker = FakeTracker()
    close_trackers([TrackerThread("fake", tracker)], RunEnd.FAILED, SECONDS)
    assert tracker.calls.empty()
