"""Adds the error answers that the servers actually give to an application's OpenAPI document."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI

from searchrl.errors import ErrorKind, ServiceError
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.http_middleware import OPEN_PATHS, ErrorShape, shape_of
from searchrl.platform.status_map import STATUS

MEANING = {
    ErrorKind.INVALID: "The request can never succeed as it is.",
    ErrorKind.UNAUTHENTICATED: "No key, or a wrong one.",
    ErrorKind.FORBIDDEN: "The key does not allow this call.",
    ErrorKind.NOT_FOUND: "The named thing does not exist.",
    ErrorKind.CONFLICT: "The thing exists already, or is in a state that forbids the call.",
    ErrorKind.TOO_LARGE: "Over a size limit.",
    ErrorKind.OVERLOADED: "Every slot is taken; Retry-After says when to try again.",
    ErrorKind.UNAVAILABLE: "A dependency is unavailable or not ready yet; try again later.",
    ErrorKind.DEADLINE: "The request's deadline passed.",
}
FRAMEWORKS_OWN = ("HTTPValidationError", "ValidationError")
"""Schemas that FastAPI documents for its status 422; our servers answer 400 instead."""


def describe_errors(app: FastAPI, keys: KeyRing, shapes: Mapping[str, ErrorShape]) -> None:
    """Make the application's OpenAPI document list every error that callers can receive, and the keys it accepts."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        # FastAPI keeps the document after the first call; it is changed once, before anybody reads it.
        if app.openapi_schema is None:
            document = generate()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _describe(operation, path, shapes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name in FRAMEWORKS_OWN:
                schemas.pop(name, None)
            if keys.enabled:
                _describe_keys(document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi


def _describe(operation: dict[str, Any], path: str, shapes: Mapping[str, ErrorShape]) -> None:
    responses: dict[str, Any] = operation["responses"]
    # See ``answer_invalid_request`` in http_app: malformed requests are answered 400.
    responses.pop("422", None)
    if path in OPEN_PATHS:
        kinds: Iterable[ErrorKind] = (ErrorKind.INVALID, ErrorKind.TOO_LARGE)
        if path != "/metrics":
            responses.setdefault("503", {"description": "Not so; the reason is in the body."})
    else:
        kinds = MEANING
    example = shape_of(path, shapes)(ServiceError("what went wrong"))
    for kind in kinds:
        content = {"application/json": {"schema": _schema_of(example)}}
        responses.setdefault(str(STATUS[kind][0]), {"description": MEANING[kind], "content": content})


def _schema_of(value: object) -> dict[str, Any]:
    """Derive the schema of an example; all of its fields are required."""
    if isinstance(value, Mapping):
        fields = {str(name): _schema_of(field) for name, field in value.items()}
        return {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": ["string", "null"]} if value is None else {"type": "string"}


def _describe_keys(document: dict[str, Any]) -> None:
    schemes = {"key": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    document["components"]["securitySchemes"] = schemes
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in OPEN_PATHS else [{"key": []}, {"basic": []}]
