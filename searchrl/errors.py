"""Defines the expected failures: their kinds, their exception classes, and which of them may be retried."""

import difflib
from collections.abc import Iterable
from enum import StrEnum


class ErrorKind(StrEnum):
    """Stable, client-visible reason; also the ``kind`` label of error counters."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


NOT_STARTED_KINDS = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.OVERLOADED})
"""The service has not started the work, so a retry repeats none of it."""
OUTAGE_KINDS = NOT_STARTED_KINDS | {ErrorKind.DEADLINE, ErrorKind.INTERNAL}
"""The service cannot serve the request now; the same request may succeed later."""
PERMANENT_KINDS = frozenset(ErrorKind) - OUTAGE_KINDS
"""The same request is refused every time, so a retry is useless."""


class ServiceError(Exception):
    """Base of all expected failures. ``str(error)`` is safe to show to the caller; survives pickling.

    ``retry_after_seconds`` is when a retry makes sense; None if the service has no estimate, or a retry is useless.
    The default of 1 s for overload and outages only keeps callers from retrying at once: how long an outage
    lasts is not known.
    """

    kind: ErrorKind = ErrorKind.INTERNAL

    def __init__(self, message: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[str, float | None]]:
        return type(self), (str(self), self.retry_after_seconds)


class InvalidRequest(ServiceError):
    """The request can never succeed as it is."""

    kind = ErrorKind.INVALID


class Unauthenticated(ServiceError):
    """No key, or a wrong one."""

    kind = ErrorKind.UNAUTHENTICATED


class Forbidden(ServiceError):
    """The key is valid but does not allow this call."""

    kind = ErrorKind.FORBIDDEN


class NotFound(ServiceError):
    """The named thing does not exist."""

    kind = ErrorKind.NOT_FOUND


class Conflict(ServiceError):
    """The thing exists already, or is in a state that forbids the call."""

    kind = ErrorKind.CONFLICT


class TooLarge(ServiceError):
    """The request is over a size limit."""

    kind = ErrorKind.TOO_LARGE


class Overloaded(ServiceError):
    """Every slot is taken; the caller may retry later."""

    kind = ErrorKind.OVERLOADED

    def __init__(self, message: str = "overloaded", retry_after_seconds: float | None = 1.0) -> None:
        super().__init__(message, retry_after_seconds)


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before the work was done."""

    kind = ErrorKind.DEADLINE


class Unavailable(ServiceError):
    """A dependency is unavailable or not ready yet; the caller may retry."""

    kind = ErrorKind.UNAVAILABLE

    def __init__(self, message: str = "unavailable", retry_after_seconds: float | None = 1.0) -> None:
        super().__init__(message, retry_after_seconds)


class ConfigurationError(Exception):
    """The program was started with an unusable setting or input. Shown as one sentence; exit code 2."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence that refuses ``name`` and suggests the nearest known one, or lists all of them."""
    choices = sorted(known)
    # A cutoff of 0.5, below difflib's 0.6, also finds short names with two wrong letters.
    near = difflib.get_close_matches(name.lower(), [choice.lower() for choice in choices], n=1, cutoff=0.5)
    # Compared in lower case, because environment variables are upper case; suggested as it is spelled.
    hint = next((choice for choice in choices if near and choice.lower() == near[0]), None)
    if hint is not None:
        return f"unknown {what} '{name}': did you mean '{hint}'?"
    return f"unknown {what} '{name}'; known: {', '.join(choices) or 'none'}"


# INTERNAL has no class of its own: those who look a kind up fall back to ServiceError itself.
ERROR_BY_KIND: dict[ErrorKind, type[ServiceError]] = {
    error.kind: error
    for error in (
        InvalidRequest,
        Unauthenticated,
        Forbidden,
        NotFound,
        Conflict,
        TooLarge,
        Overloaded,
        DeadlineExceeded,
        Unavailable,
    )
}
