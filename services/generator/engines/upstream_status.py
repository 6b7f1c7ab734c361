"""Translates the HTTP status and message of an OpenAI-compatible server into our errors."""

from typing import Any

import orjson

from searchrl.errors import InvalidRequest, Overloaded, ServiceError, Unavailable

EXCERPT_CHARACTERS = 500
"""Longest excerpt of a server's message: enough for its sentence, too little for an echoed prompt."""

# The request itself is refused; a retry would be refused, too.
_REFUSED = frozenset({400, 413, 422})
# A timeout, a conflict, or a request that came too early: these may pass.
_RETRYABLE = frozenset({408, 409, 425})
# 402: the account behind the key has no credit; 407: a proxy between us and the engine wants credentials of its own.
_CREDENTIALS = frozenset({401, 402, 403, 407})


class EngineMisconfigured(Unavailable):
    """The engine refuses every request of this service: wrong key, unknown model or wrong address.

    It is not an error of the caller, so the service is unavailable; a retry does not help either.
    """

    def __init__(self, message: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds)


def error_for_status(status: int, content: bytes, retry_after: str | None = None) -> ServiceError:
    """Return the error for an engine's HTTP error status.

    Only ``Unavailable`` (but not ``EngineMisconfigured``) and ``Overloaded`` are worth a retry.
    """
    text = f"the engine answered {status}: {find_error_message(content) or 'nothing'}"
    if status == 429:
        return Overloaded(text, _parse_seconds(retry_after))
    if status >= 500 or status in _RETRYABLE:
        return Unavailable(text, _parse_seconds(retry_after))
    if status in _REFUSED:
        return InvalidRequest(text)
    if status in _CREDENTIALS:
        return EngineMisconfigured(f"the engine refused the configured key; {text}")
    return EngineMisconfigured(f"the engine does not serve this model at this address; {text}")


def is_caller_error(status: int, content: bytes) -> bool:
    """Whether a reply refuses the request itself, in OpenAI's form: then a client can use it as received."""
    if status not in _REFUSED:
        return False
    try:
        parsed = orjson.loads(content)
    except ValueError:
        return False
    return isinstance(parsed, dict) and isinstance(parsed.get("error"), dict)


def find_error_message(content: bytes) -> str:
    """Return the server's message, whatever its form: OpenAI's, FastAPI's ``detail``, a message, or plain text."""
    try:
        parsed = orjson.loads(content)
    except ValueError:
        return _shorten(content.decode(errors="replace"))
    return _shorten(_find_message(parsed) or content.decode(errors="replace"))


def _find_message(value: Any) -> str:
    """Return the first text in the fields that servers use for messages; empty if there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, map(_find_message, value[:5])))
    if not isinstance(value, dict):
        return ""
    for name in ("error", "message", "detail", "msg", "title"):
        text = _find_message(value.get(name))
        if text:
            place = value.get("loc")
            return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, list) else text
    return ""


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…"


def _parse_seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None
