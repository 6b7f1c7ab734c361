"""Writes errors in the form that OpenAI's clients parse."""

from typing import Any

import orjson

from searchrl.errors import ErrorKind, NotFound, ServiceError
from searchrl.platform.json_text import without_lone_surrogates
from searchrl.platform.request_context import request_id

_TYPES = {
    ErrorKind.INVALID: "invalid_request_error",
    ErrorKind.TOO_LARGE: "invalid_request_error",
    ErrorKind.NOT_FOUND: "invalid_request_error",
    ErrorKind.UNAUTHENTICATED: "authentication_error",
    ErrorKind.FORBIDDEN: "permission_error",
    ErrorKind.OVERLOADED: "rate_limit_error",
}
_CODES = {ErrorKind.OVERLOADED: "rate_limit_exceeded", ErrorKind.UNAUTHENTICATED: "invalid_api_key"}


class ModelNotFound(NotFound):
    """No model of that name is served."""


def openai_error(error: ServiceError) -> dict[str, Any]:
    """Return the error body; ``kind`` and ``request_id`` are the fields of every other error of the service."""
    missing = isinstance(error, ModelNotFound)
    return {
        "error": {
            "message": without_lone_surrogates(str(error)),
            "type": _TYPES.get(error.kind, "server_error"),
            "param": "model" if missing else None,
            "code": "model_not_found" if missing else _CODES.get(error.kind),
            "kind": error.kind.value,
            "request_id": request_id(),
        }
    }


def openai_error_event(error: ServiceError) -> bytes:
    """Return the error as an event of a stream that has started."""
    return b"data: " + orjson.dumps(openai_error(error)) + b"\n\n"
