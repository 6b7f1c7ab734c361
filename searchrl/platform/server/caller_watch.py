"""Cancels the work of an HTTP request whose caller disconnects, by reading its body ahead of the application.

ASGI reports a disconnect only to a reader. A task therefore reads the request all the time and keeps its messages for
the application; the bytes that are held this way are bounded per request and per server (``BodyBudget``).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from searchrl.errors import Overloaded, ServiceError, TooLarge

ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]


class BodyBudget:
    """Limits the bytes of request bodies in memory, per request and for the entire server.

    The default of 16 largest bodies is 1 GiB at 64 MiB each. Used in the event loop only, so it needs no lock.
    """

    def __init__(self, max_body_bytes: int, max_bodies: int = 16) -> None:
        self.max_body_bytes = max_body_bytes
        self._left = max_body_bytes * max_bodies

    def take(self, count: int) -> None:
        """Reserve ``count`` bytes.

        Raises:
            Overloaded: too many bodies are held already.
        """
        if count > self._left:
            raise Overloaded("too many large requests at once")
        self._left -= count

    def give_back(self, count: int) -> None:
        self._left += count


class CallerWatch:
    """Reads a request for the application, and cancels the application when the caller disconnects.

    Use it as a context manager around the application, in the application's own task; ``receive`` replaces
    the server's. A caller that disconnects after the complete answer cancels nothing.

    Attributes:
        has_left: the caller disconnected before its answer was complete.
    """

    def __init__(self, receive: Receive, budget: BodyBudget, is_answered: Callable[[], bool]) -> None:
        self.has_left = False
        self._receive = receive
        self._budget = budget
        self._is_answered = is_answered
        self._messages: deque[ASGIMessage] = deque()
        self._arrived = asyncio.Event()
        self._held = 0
        self._refusal: ServiceError | None = None
        self._application: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def receive(self) -> ASGIMessage:
        """Return the next message: a part of the body, or the disconnect."""
        # Nothing awaits between this test and ``wait``, so no message can arrive unnoticed in between.
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        if self._messages[0]["type"] == "http.disconnect":  # kept, for a reader that asks again
            return self._messages[0]
        return self._messages.popleft()

    async def __aenter__(self) -> "CallerWatch":
        self._application = asyncio.current_task()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> bool:
        assert self._application is not None
        assert self._watching is not None
        # No await follows in this method, so the reading task cannot add to ``_held`` once its bytes are given back.
        self._watching.cancel()
        self._budget.give_back(self._held)
        self._held = 0
        # The deadline of the request (``asyncio.timeout`` in the middleware, outside this block) cancels the same task.
        # It counts its own cancellation in the same way, so each may take back only the one that it requested.
        ended_here = kind is asyncio.CancelledError and (self.has_left or self._refusal is not None)
        # ``uncancel`` takes back the watch's own cancellation. If another one remains, e.g. of a process that stops,
        # the CancelledError must continue.
        if not ended_here or self._application.uncancel() > 0:
            return False
        if self._refusal is not None:
            raise self._refusal from None
        return True

    async def _watch(self) -> None:
        received = 0
        while True:
            message = await self._receive()
            # uvicorn also sends this when the answer is complete, not only when the caller has left; ``is_answered``
            # tells the two apart below.
            if message["type"] == "http.disconnect":
                break
            size = len(message.get("body", b""))
            received += size
            try:
                self._hold(size, received)
            except ServiceError as error:
                self._refusal = error  # raised in ``receive``, frameworks would report it as a body they cannot parse
                break
            self._add(message)
        # Added for a refused body too: an application that waits for the next part is released.
        self._add({"type": "http.disconnect"})
        assert self._application is not None
        if not self._is_answered():
            self.has_left = self._refusal is None
            self._application.cancel()

    def _hold(self, size: int, received: int) -> None:
        # Counted here, because a body sent in chunks has no Content-Length that could be checked before. uvicorn's own
        # flow control pauses at 64 KiB that nobody has read, which never happens to a task that always reads.
        if received > self._budget.max_body_bytes:
            raise TooLarge(f"the body is over the limit of {self._budget.max_body_bytes} bytes")
        self._budget.take(size)
        self._held += size

    def _add(self, message: ASGIMessage) -> None:
        self._messages.append(message)
        self._arrived.set()
