"""Provides the least-recently-used cache, and calls that concurrent callers share instead of repeating them.

Everything here belongs to one event loop, so nothing needs a lock: only an ``await`` lets another caller in.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from searchrl.errors import DeadlineExceeded
from searchrl.platform.request_context import deadline_time, remaining_seconds

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Keeps the most recently used values; the least recently used ones are evicted first.

    Args:
        max_entries: most values; 0 keeps none.
        max_bytes: most bytes of all values together, as ``size_of`` measures them; None: no limit.
    """

    def __init__(
        self, max_entries: int, *, max_bytes: int | None = None, size_of: Callable[[Value], int] = lambda _value: 0
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.bytes = 0

    def get(self, key: Key) -> Value | None:
        """Return the value under ``key``, which is then the most recently used."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> int:
        """Keep a value, unless it alone is over ``max_bytes``; return how many were evicted for it."""
        # Removed first: the old value under this key is outdated even if the new one is not kept.
        if (old := self._values.pop(key, None)) is not None:
            self.bytes -= self._size_of(old)
        size = self._size_of(value)
        if self._max_bytes is not None and size > self._max_bytes:
            return 0
        self._values[key] = value
        self.bytes += size
        evicted = 0
        while self._values and self._is_over():
            _, oldest = self._values.popitem(last=False)
            self.bytes -= self._size_of(oldest)
            evicted += 1
        return evicted

    def __len__(self) -> int:
        return len(self._values)

    def _is_over(self) -> bool:
        return len(self._values) > self._max_entries or (self._max_bytes is not None and self.bytes > self._max_bytes)


class _Call(NamedTuple, Generic[Value]):
    """A running call, and the deadline of the caller that started it, as ``deadline_time`` gives it."""

    task: "asyncio.Future[Value]"
    deadline: float


class SingleFlight(Generic[Key, Value]):
    """Makes one call per key at a time; callers that arrive meanwhile receive its result or its error.

    A call runs in a task of its own: the cancellation of one caller does not cancel what others wait for. A failed call
    is forgotten, so that the next caller repeats it. The task has the context, and so the deadline, of the caller that
    started it. If it fails at that deadline, those that joined it and have a later one repeat it.

    Args:
        keep_results: later callers receive the result of a call that succeeded, until ``clear``.
    """

    def __init__(self, *, keep_results: bool = False) -> None:
        self._keep_results = keep_results
        self._kept: dict[Key, Value] = {}
        self._running: dict[Key, _Call[Value]] = {}

    async def run(self, key: Key, call: Callable[[], Awaitable[Value]]) -> Value:
        """Return the result of ``call()``, or of the call under the same key that is running or kept.

        Raises whatever that call raises.
        """
        while key not in self._kept:
            running = self._running.get(key)
            if running is None:
                # No await between the look-up and this assignment, so two callers never start the same call.
                started = self._running[key] = _Call(asyncio.ensure_future(call()), deadline_time())
                started.task.add_done_callback(lambda done: self._end(key, done))
                # Awaited without a shield, the task would be cancelled together with the caller that awaits it.
                return await asyncio.shield(started.task)
            # Like a shield, ``wait`` cancels nothing when this caller is cancelled.
            done, _ = await asyncio.wait([running.task], timeout=remaining_seconds())
            if not done:
                raise DeadlineExceeded("the deadline passed while waiting for the call of another caller")
            try:
                return running.task.result()
            except DeadlineExceeded:
                if deadline_time() <= running.deadline:
                    raise
        return self._kept[key]

    def keep(self, key: Key, value: Value) -> None:
        """Keep a result that is known from elsewhere."""
        self._kept[key] = value

    def clear(self) -> None:
        """Forget all results. Calls in progress end for their callers; later callers start new ones."""
        self._kept.clear()
        self._running.clear()

    def _end(self, key: Key, task: "asyncio.Future[Value]") -> None:
        # Reading the exception also marks it as retrieved. If every caller was cancelled, asyncio would otherwise
        # report "Task exception was never retrieved".
        succeeded = not task.cancelled() and task.exception() is None
        running = self._running.get(key)
        if running is None or running.task is not task:
            return  # ``clear`` was called meanwhile, and another call may have the key now
        del self._running[key]
        if succeeded and self._keep_results:
            self._kept[key] = task.result()


class BatchFlight(Generic[Key, Value]):
    """Computes many keys in one call, but each key only once at a time.

    Keys that another caller is computing are waited for. If that caller fails or is cancelled, those that waited for it
    compute the keys themselves. Example with two callers:

        A.run([1, 2, 3])    computes 1 2 3 ......... fails: A gets the error
        B.run([2, 3, 4])      computes 4, waits for 2 3 ...| computes 2 3, returns 2 3 4
    """

    def __init__(self, on_join: Callable[[int], object] = lambda _count: None) -> None:
        """``on_join`` is called with the number of keys that a caller waits for instead of computing them."""
        self._on_join = on_join
        self._flights: dict[Key, asyncio.Future[Value]] = {}

    async def run(
        self, keys: Sequence[Key], compute: Callable[[Sequence[Key]], Awaitable[Sequence[Value]]]
    ) -> dict[Key, Value]:
        """Return the values of all keys; ``compute`` is called with those that nobody is computing.

        Raises whatever ``compute`` raises for this caller.
        """
        found: dict[Key, Value] = {}
        missing = list(keys)
        while missing:
            joined = {key: self._flights[key] for key in missing if key in self._flights}
            own = [key for key in missing if key not in joined]
            # The own keys are computed, and their futures set, before any other caller is waited for. Otherwise two
            # callers with overlapping keys could wait for each other: A owns x and waits for y, B owns y and waits
            # for x.
            if own:
                found.update(await self._compute_and_share(own, compute))
            if joined:
                self._on_join(len(joined))
                # ``wait`` neither raises what a future holds nor cancels the futures when this caller is cancelled;
                # ``gather`` would do both, and fail the other callers.
                await asyncio.wait(joined.values())
                found.update({key: flight.result() for key, flight in joined.items() if not flight.cancelled()})
            # A joined flight that was cancelled leaves its key missing. The next round computes it here, or joins the
            # caller that was first to notice.
            missing = [key for key in missing if key not in found]
        return found

    async def _compute_and_share(
        self, own: Sequence[Key], compute: Callable[[Sequence[Key]], Awaitable[Sequence[Value]]]
    ) -> dict[Key, Value]:
        # The flights are registered before the first await, so that no second caller computes one of these keys.
        loop = asyncio.get_running_loop()
        flights: dict[Key, asyncio.Future[Value]] = {key: loop.create_future() for key in own}
        self._flights |= flights
        try:
            values = dict(zip(own, await compute(own), strict=True))
            for key, flight in flights.items():
                flight.set_result(values[key])
        finally:
            for key, flight in flights.items():
                del self._flights[key]
                flight.cancel()  # after a failure the waiting callers see this and retry; no effect on a set result
        return values
