"""Converts the errors of the Kubernetes client to this project's."""

import contextlib
import json
from collections.abc import Iterator

from searchrl.errors import Conflict, Forbidden, InvalidRequest, NotFound, ServiceError, Unavailable

NOT_FOUND, FORBIDDEN, CONFLICT = 404, (401, 403), 409


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Convert the Kubernetes client's errors to this project's."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _service_error(int(error.status or 0), str(error.body or error.reason)) from error
    except HTTPError as error:
        raise Unavailable(f"the API server does not answer: {error}", retry_after_seconds=None) from error


def _service_error(status: int, body: str) -> ServiceError:
    text = _message(body)
    if status == NOT_FOUND:
        return NotFound(text)
    if status in FORBIDDEN:
        return Forbidden(text)
    if status == CONFLICT:
        return Conflict(text)
    return InvalidRequest(text) if 400 <= status < 500 else Unavailable(text, retry_after_seconds=None)


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip() or "the API server refused"
