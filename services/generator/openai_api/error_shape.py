"""How does an error look to an OpenAI client?"""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from searchrl.errors import ErrorKind, InvalidRequest, NotFound, ServiceError
from searchrl.platform.request_context import request_id
from searchrl.platform.request_gate import error_headers
from searchrl.platform.status_map import STATUS

OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models")
"""Prefixes of the paths whose errors have this form, whoever answers them."""

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
    """The body; ``kind`` and ``request_id`` are the fields of every other error of the service."""
    missing = isinstance(error, ModelNotFound)
    return {
        "error": {
            "message": str(error),
            "type": _TYPES.get(error.kind, "server_error"),
            "param": "model" if missing else None,
            "code": "model_not_found" if missing else _CODES.get(error.kind),
            "kind": error.kind.value,
            "request_id": request_id(),
        }
    }


def openai_error_event(error: ServiceError) -> bytes:
    """The error inside a stream that has begun."""
    return b"data: " + orjson.dumps(openai_error(error)) + b"\n\n"


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's form; the statuses are those of the one error table."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def translated(request: Request) -> Response:
            try:
                return await handler(request)
            except ServiceError as error:
                failure = error
            except RequestValidationError as error:
                first = error.errors()[0]
                failure = InvalidRequest(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
            return JSONResponse(openai_error(failure), STATUS[failure.kind][0], headers=error_headers(failure))

        return translated
