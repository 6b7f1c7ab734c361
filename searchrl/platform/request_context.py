"""Carries the id and the deadline of the current request in context variables, for both transports.

Tasks started in a request inherit both. Deadlines nest: an inner one can only shorten the outer one, and ``request``
and ``deadline`` restore the previous values at the end of their block.
"""

import math
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout"

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class _Deadline:
    """The deadline as a mutable object: tasks copy the context, not this object, so lifting it reaches all of them."""

    __slots__ = ("at", "on_lift")

    def __init__(self, at: float | None, on_lift: Callable[[], object] | None = None) -> None:
        self.at = at
        self.on_lift = on_lift


_request_id: ContextVar[str] = ContextVar("request_id", default="")
_deadline: ContextVar[_Deadline | None] = ContextVar("deadline", default=None)


def request_id() -> str:
    """Id of the current request; empty outside a request."""
    return _request_id.get()


def deadline_time() -> float:
    """Time of the current deadline, as ``time.monotonic`` counts; infinite without a deadline."""
    deadline = _deadline.get()
    return math.inf if deadline is None or deadline.at is None else deadline.at


def remaining_seconds() -> float | None:
    """Seconds until the current deadline, at least 0; None without a deadline."""
    # The monotonic clock: a correction of the system clock must neither expire nor extend a request.
    left = deadline_time() - time.monotonic()
    return None if left == math.inf else max(0.0, left)


def tighten_deadline(seconds: float | None) -> float | None:
    """Return the smaller of ``seconds`` and the time left until the current deadline; None if both are unlimited."""
    left = remaining_seconds()
    if left is None or seconds is None:
        return seconds if left is None else left
    return min(left, seconds)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Limit the block to ``seconds`` from now; an earlier outer deadline stays in force."""
    with _set_deadline(seconds):
        yield


@contextmanager
def default_deadline(seconds: float | None, on_lift: Callable[[], object]) -> Iterator[None]:
    """Like ``deadline``, but ``lift_default_deadline``, called in the block, removes it and runs ``on_lift``."""
    with _set_deadline(seconds, on_lift):
        yield


def lift_default_deadline() -> None:
    """Remove the default deadline of the current request; a deadline that its caller named stays in force."""
    deadline = _deadline.get()
    # Only ``default_deadline`` sets ``on_lift``, so a deadline that the caller named has none and stays.
    if deadline is not None and deadline.on_lift is not None:
        deadline.at = None
        deadline.on_lift()


@contextmanager
def _set_deadline(seconds: float | None, on_lift: Callable[[], object] | None = None) -> Iterator[None]:
    left = tighten_deadline(seconds)
    token = _deadline.set(_Deadline(None if left is None else time.monotonic() + left, on_lift))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def request(id: str | None, seconds: float | None) -> Iterator[str]:
    """Enter a request with the caller's id and deadline; yields the id in use.

    An id that is missing, or not of ``[A-Za-z0-9._-]{1,128}``, is replaced by a new one: ids are written to logs and
    to headers of further calls, where other characters are refused or can forge lines.
    """
    # 60 random bits (4 of the 64 are the UUID's version): among ten million requests, two share an id with a
    # probability below 1 in 10,000.
    chosen = id if id and _SAFE_ID.fullmatch(id) else uuid.uuid4().hex[:16]
    token = _request_id.set(chosen)
    try:
        with deadline(seconds):
            yield chosen
    finally:
        _request_id.reset(token)
