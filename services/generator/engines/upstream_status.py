"""Translates the HTTP status of an OpenAI-compatible server, and the message that came with it."""

from typing import Any

import orjson

from searchrl.errors import InvalidRequest, Overloaded, ServiceError, Unavailable

SHOWN_CHARACTERS = 500
"""Of a server's message: enough for its sentence, too little for an echoed prompt."""

_REFUSED = frozenset({400, 413, 422})
_TRIED_AGAIN = frozenset({408, 409, 425})
# 402: the account behind the key has no credit; 407: a proxy between us and the engine wants credentials of its own.
_OUR_KEY = frozenset({401, 402, 403, 407})


class EngineMisconfigured(Unavailable):
    """The engine refuses every request of this service: wrong key, unknown model or wrong address.

    Callers cannot help it, so to them the service is unavailable; another attempt is of no use either.
    """

    def __init__(self, message: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds)


def status_failure(status: int, content: bytes, retry_after: str | None = None) -> ServiceError:
    """The error of an engine that answered with an HTTP error status.

    Only ``Unavailable`` (but not ``EngineMisconfigured``) and ``Overloaded`` are worth another attempt.
    """
    text = f"the engine answered {status}: {error_detail(content) or 'nothing'}"
    if status == 429:
        return Overloaded(text, _seconds(retry_after))
    if status >= 500 or status in _TRIED_AGAIN:
        return Unavailable(text, _seconds(retry_after))
    if status in _REFUSED:
        return InvalidRequest(text)
    if status in _OUR_KEY:
        return EngineMisconfigured(f"the engine refused our key; {text}")
    return EngineMisconfigured(f"the engine does not serve this model at this address; {text}")


def is_callers_fault(status: int, content: bytes) -> bool:
    """True for a refusal of the request itself, told in OpenAI's form: a client can read and use it as it came."""
    if status not in _REFUSED:
        return False
    try:
        parsed = orjson.loads(content)
    except ValueError:
        return False
    return isinstance(parsed, dict) and isinstance(parsed.get("error"), dict)


def error_detail(content: bytes) -> str:
    """What the server says, whichever form it has: OpenAI's, FastAPI's ``detail``, a message, or plain text."""
    try:
        parsed = orjson.loads(content)
    except ValueError:
        return _shortened(content.decode(errors="replace"))
    return _shortened(_message(parsed) or content.decode(errors="replace"))


def _message(value: Any) -> str:
    """The first text where servers put one; empty if there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, map(_message, value[:5])))
    if not isinstance(value, dict):
        return ""
    for name in ("error", "message", "detail", "msg", "title"):
        text = _message(value.get(name))
        if text:
            place = value.get("loc")
            return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, list) else text
    return ""


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None
