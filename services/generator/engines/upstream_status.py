"""Where is an OpenAI-compatible server's API, and what does its HTTP status mean?"""

from searchrl.errors import InvalidRequest, Overloaded, ServiceError, Unavailable

MAX_CONNECTIONS = 512

_REFUSED = frozenset({400, 413, 422})
_TRIED_AGAIN = frozenset({408, 409, 425})


def api_root(base_url: str) -> str:
    """``base_url`` with exactly one ``/v1`` at its end."""
    return base_url.rstrip("/").removesuffix("/v1") + "/v1"


def status_failure(status: int, message: str, retry_after: str | None = None) -> ServiceError:
    """The error of an engine that answered with an HTTP error status.

    Only ``Unavailable`` and ``Overloaded`` are worth another attempt.
    """
    text = f"the engine answered {status}: {message[:300]}"
    if status == 429:
        return Overloaded(text, _seconds(retry_after))
    if status >= 500 or status in _TRIED_AGAIN:
        return Unavailable(text, _seconds(retry_after))
    if status in _REFUSED:
        return InvalidRequest(text)
    return ServiceError(text)


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None
