"""Which request is being served, and how much time has it left? Travels with the task, over both transports."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("request_id", default="")
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout"


def request_id() -> str:
    """Id of the current request; empty outside of one."""
    return _request_id.get()


def remaining_seconds() -> float | None:
    """Seconds until the current deadline, at least 0; None without a deadline."""
    at = _deadline.get()
    return None if at is None else max(0.0, at - time.monotonic())


def sooner(seconds: float | None) -> float | None:
    """The tighter of ``seconds`` and what the current deadline leaves."""
    left = remaining_seconds()
    if left is None or seconds is None:
        return seconds if left is None else left
    return min(left, seconds)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Limit the block to ``seconds`` from now; an earlier outer deadline stays in force."""
    left = sooner(seconds)
    token = _deadline.set(None if left is None else time.monotonic() + left)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def request(id: str | None, seconds: float | None) -> Iterator[str]:
    """Enter a request: takes the caller's id, or makes one, and its deadline."""
    chosen = id or uuid.uuid4().hex[:16]
    token = _request_id.set(chosen)
    try:
        with deadline(seconds):
            yield chosen
    finally:
        _request_id.reset(token)
