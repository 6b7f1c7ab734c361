"""Sends requests to an OpenAI-compatible server, bounded in time and size, and translates its error statuses.

It uses aiohttp, which stays fast with many concurrent requests. httpx searches all its connections for each request,
which takes most of the time of a gateway from some dozen clients on.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import orjson
import yarl

from searchrl.clients.openai_url import OpenAIServerUrl
from searchrl.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServiceError, Unavailable

EXCERPT_CHARACTERS = 500
"""Longest excerpt of a server's message: enough for its sentence, too little for an echoed prompt."""

# The request itself is refused; a retry would be refused, too.
_REFUSED = frozenset({400, 413, 422})
# A timeout, a conflict, or a request that came too early: these may pass.
_RETRYABLE = frozenset({408, 409, 425})
# 402: the account behind the key has no credit; 407: a proxy between us and the engine wants credentials of its own.
_CREDENTIALS = frozenset({401, 402, 403, 407})

MAX_CONNECTIONS = 1024
"""The default of ``limits.max_generations``: an admitted request never waits for a connection."""
KEEP_ALIVE_SECONDS = 4.0
"""Below the 5 s after which uvicorn (vLLM, SGLang) closes an idle connection, so that no request is sent into one that
is being closed."""
CONNECT_SECONDS = 10.0
"""Long enough for a lost SYN packet to be sent again; a longer one delays the next attempt at an unreachable host."""
MAX_REPLY_BYTES = 64 << 20
"""Limit of a reply or an entire stream; a reply of 100,000 tokens with log-probabilities takes about 20 MiB."""
_READ_BUFFER_BYTES = 1 << 18  # 256 KiB; a smaller one (aiohttp's default is 64 KiB) pauses busy connections more often


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """An answer as it was received."""

    status: int
    content_type: str
    content: bytes
    retry_after: str | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class UpstreamStream:
    """An answer in progress. Read it by ``read_part`` until that returns nothing, and close it in any case."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._received = 0
        self.status = response.status
        self.content_type = response.headers.get("content-type", "application/json")

    @property
    def is_event_stream(self) -> bool:
        return 200 <= self.status < 300 and self.content_type.startswith("text/event-stream")

    async def read_part(self, until: float) -> bytes:
        """Return the bytes that were received since the last call; empty at the end.

        Raises:
            DeadlineExceeded: nothing was received before ``until``, a time of ``time.monotonic``.
            Unavailable: the connection broke, or the answer is longer than ``MAX_REPLY_BYTES``.
        """
        with translate_errors("the engine's stream ended in the middle of its reply"):
            # aiohttp's own read timeout is one number for the entire answer; here each read has an end of its own.
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                # readany and not readline: an event may be far longer than aiohttp's limit of a line.
                part = await self._response.content.readany()
        self._received += len(part)
        if self._received > MAX_REPLY_BYTES:
            raise Unavailable(f"the engine's reply is over {MAX_REPLY_BYTES} bytes", None)
        return part

    async def read_all(self, until: float) -> UpstreamReply:
        """Return everything that is left as one answer; raises as ``read_part``."""
        parts: list[bytes] = []
        while part := await self.read_part(until):
            parts.append(part)
        return UpstreamReply(self.status, self.content_type, b"".join(parts), self._response.headers.get("retry-after"))

    def close(self) -> None:
        """Drop the connection unless the answer was read to its end."""
        self._response.close()


class UpstreamHttp:
    """The connections to one server."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        use_proxies: bool = True,
    ) -> None:
        self._url = OpenAIServerUrl(base_url)
        # No compression: an answer is returned as received, without the server's Content-Encoding.
        self._headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._headers |= {name.lower(): value for name, value in (headers or {}).items()}
        self._use_proxies = use_proxies
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes, until: float, headers: Mapping[str, str]) -> UpstreamReply:
        """Send ``body`` to ``path`` and return the complete answer, whatever its status.

        Raises:
            DeadlineExceeded: it was not complete by ``until``.
            Unavailable: the server cannot be reached, or the connection broke.
        """
        stream = await self.stream(path, body, until, headers)
        try:
            return await stream.read_all(until)
        finally:
            stream.close()

    async def stream(self, path: str, body: bytes, until: float, headers: Mapping[str, str]) -> UpstreamStream:
        """Send ``body`` to ``path`` and return once the answer starts; raises as ``post``."""
        return await self._request("POST", path, until, headers, body)

    async def get(self, path: str, until: float) -> UpstreamReply:
        """Read ``path``; raises as ``post``."""
        stream = await self._request("GET", path, until, {}, None)
        try:
            return await stream.read_all(until)
        finally:
            stream.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _request(
        self, method: str, path: str, until: float, headers: Mapping[str, str], body: bytes | None
    ) -> UpstreamStream:
        # encoded: the address of the settings is used byte for byte, also with a query such as Azure's ?api-version=.
        url = yarl.URL(self._url.endpoint(path), encoded=True)
        with translate_errors("the engine cannot be reached"):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                # Redirects are not followed: they would send our key to another server.
                response = await self._open_session().request(
                    method, url, data=body, headers={**self._headers, **headers}, allow_redirects=False
                )
        return UpstreamStream(response)

    def _open_session(self) -> aiohttp.ClientSession:
        """Return the session, created at the first request because it belongs to the running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=MAX_CONNECTIONS,
                    keepalive_timeout=KEEP_ALIVE_SECONDS,
                    ssl=httpx.create_ssl_context(),  # the same authorities as every other client of the services
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                # A cookie of one caller's answer must not be sent with the requests of others.
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=self._use_proxies,
                read_bufsize=_READ_BUFFER_BYTES,
            )
        return self._session


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Translate the errors of a failed call; ``what`` starts the message of a failure that is no timeout."""
    try:
        yield
    # Order matters: aiohttp's connection timeout is a TimeoutError, and TimeoutError is an OSError.
    except aiohttp.ConnectionTimeoutError as error:
        raise Unavailable(f"{what}: no connection within {CONNECT_SECONDS:g} s", None) from error
    except TimeoutError as error:
        raise DeadlineExceeded("the engine did not answer in time") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unavailable(f"{what}: {str(error) or type(error).__name__}", None) from error


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
    # Retry-After may also be a date (RFC 9110, 10.2.3), which counts as absent: see ``_parse_seconds``.
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
            # pydantic's place of an error, such as ["body", "messages", 0, "role"].
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
