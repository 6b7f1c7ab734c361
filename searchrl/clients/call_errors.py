"""Translates failed gRPC calls and HTTP answers to the exceptions of ``searchrl.errors``."""

import math
from collections.abc import Mapping
from typing import Any

import grpc

from searchrl.errors import ERROR_BY_KIND, ErrorKind, Overloaded, ServiceError, TooLarge, Unavailable
from searchrl.platform.status_map import ERROR_KIND_METADATA, KIND_BY_CODE, KIND_BY_HTTP, RETRY_AFTER_METADATA

# Statuses that our servers never send, but proxies and foreign servers do.
_PROXY_STATUS = {408: ErrorKind.DEADLINE, 425: ErrorKind.UNAVAILABLE, 502: ErrorKind.UNAVAILABLE}
_OTHER_CODES = {
    grpc.StatusCode.UNIMPLEMENTED: ErrorKind.INVALID,  # another version, or no such service: a retry is useless
    grpc.StatusCode.ALREADY_EXISTS: ErrorKind.CONFLICT,
    grpc.StatusCode.ABORTED: ErrorKind.CONFLICT,
}


class QueryFailed(ServiceError):
    """One query of a search failed, while the others may have succeeded."""

    def __init__(
        self, message: str = "", retry_after_seconds: float | None = None, kind: ErrorKind = ErrorKind.UNAVAILABLE
    ) -> None:
        super().__init__(message, retry_after_seconds)
        self.kind = kind

    # Unlike its siblings this error has its kind on the instance, and the base class would lose it when pickled.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.retry_after_seconds, self.kind)


def error_of_kind(kind: ErrorKind, message: str, retry_after_seconds: float | None = None) -> ServiceError:
    """Build the error of ``kind``; an overload without ``retry_after_seconds`` keeps the default of its class."""
    error_class = ERROR_BY_KIND.get(kind, ServiceError)
    if retry_after_seconds is None and error_class is Overloaded:
        return Overloaded(message)
    return error_class(message, retry_after_seconds)


def from_grpc(error: grpc.aio.AioRpcError, target: str) -> ServiceError:
    """Translate by the error kind in the trailing metadata if there is one, else by the status code."""
    sent = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    code = error.code()
    message = error.details() or code.name.lower()
    kind = _kind(sent.get(ERROR_KIND_METADATA))
    # The kind says more than the code, which gRPC itself and proxies also send for other reasons.
    if kind is not None:
        return error_of_kind(kind, message, _seconds(sent.get(RETRY_AFTER_METADATA)))
    where = f"{target}: {message}"
    # gRPC itself uses this code for a message over the size limit, where a retry would be useless.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        return TooLarge(where)
    # The server or a proxy cancelled the call. When the caller itself is cancelled, grpc.aio raises CancelledError
    # instead, so that does not come here.
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable(where, None)
    kind = KIND_BY_CODE.get(code) or _OTHER_CODES.get(code, ErrorKind.INTERNAL)
    return error_of_kind(kind, where, _seconds(sent.get(RETRY_AFTER_METADATA)))


def from_http(status: int, headers: Mapping[str, str], body: str, url: str) -> ServiceError:
    """Translate an HTTP answer that is not a success; the message quotes the first 300 characters of ``body``."""
    # A redirect (3xx) is not followed and means a wrong address, which a retry does not correct.
    rest = ErrorKind.INVALID if 300 <= status < 500 else ErrorKind.INTERNAL
    kind = KIND_BY_HTTP.get(status) or _PROXY_STATUS.get(status) or rest
    message = f"{url} answered {status}: {' '.join(body.split())[:300]}"
    return error_of_kind(kind, message, _seconds(headers.get(RETRY_AFTER_METADATA)))


def _kind(text: str | None) -> ErrorKind | None:
    return ErrorKind(text) if text in set(ErrorKind) else None


def _seconds(text: str | None) -> float | None:
    """Read a Retry-After; None if it is absent, negative, or a date."""
    try:
        seconds = float(text) if text else None
    except ValueError:
        return None
    return seconds if seconds is not None and math.isfinite(seconds) and seconds >= 0 else None
