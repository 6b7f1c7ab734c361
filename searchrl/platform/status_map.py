"""Maps each error kind to its HTTP status and gRPC code, and back; the only such table."""

import grpc

from searchrl.errors import ErrorKind

STATUS: dict[ErrorKind, tuple[int, grpc.StatusCode]] = {
    ErrorKind.INVALID: (400, grpc.StatusCode.INVALID_ARGUMENT),
    ErrorKind.UNAUTHENTICATED: (401, grpc.StatusCode.UNAUTHENTICATED),
    ErrorKind.FORBIDDEN: (403, grpc.StatusCode.PERMISSION_DENIED),
    ErrorKind.NOT_FOUND: (404, grpc.StatusCode.NOT_FOUND),
    # Not ABORTED, on which gRPC's clients may retry: FAILED_PRECONDITION means that a retry is useless until somebody
    # has changed the state.
    ErrorKind.CONFLICT: (409, grpc.StatusCode.FAILED_PRECONDITION),
    # Each code stands for one kind, so that the table can be inverted; RESOURCE_EXHAUSTED, which gRPC itself uses for a
    # message over its limit, means overload here, and clients retry that.
    ErrorKind.TOO_LARGE: (413, grpc.StatusCode.OUT_OF_RANGE),
    ErrorKind.OVERLOADED: (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ErrorKind.DEADLINE: (504, grpc.StatusCode.DEADLINE_EXCEEDED),
    ErrorKind.UNAVAILABLE: (503, grpc.StatusCode.UNAVAILABLE),
    ErrorKind.INTERNAL: (500, grpc.StatusCode.INTERNAL),
}

KIND_BY_CODE: dict[grpc.StatusCode, ErrorKind] = {code: kind for kind, (_, code) in STATUS.items()}
KIND_BY_HTTP: dict[int, ErrorKind] = {status: kind for kind, (status, _) in STATUS.items()}

ERROR_KIND_METADATA = "searchrl-error-kind"
"""Trailing metadata with the error kind; a gRPC error without it comes from gRPC itself or from a proxy."""
RETRY_AFTER_METADATA = "retry-after"
