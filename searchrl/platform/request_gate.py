"""How does an HTTP request get its deadline, request id, authorization and size limit? One ASGI middleware."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import orjson

from searchrl.errors import DeadlineExceeded, ErrorKind, InvalidRequest, ServiceError, TooLarge
from searchrl.platform.auth import KeyRing, Scope
from searchrl.platform.health import Health
from searchrl.platform.metrics_endpoint import RequestMetrics
from searchrl.platform.request_context import (
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
    remaining_seconds,
    request,
    request_id,
)
from searchrl.platform.status_map import KIND_BY_HTTP, STATUS
from searchrl.platform.tracing import Span, span

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/health"})

ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]


def error_body(error: ServiceError) -> dict[str, object]:
    """The JSON form of every error."""
    return {"error": {"kind": error.kind.value, "message": str(error), "request_id": request_id()}}


def error_headers(error: ServiceError) -> dict[str, str]:
    """Headers that go with an error."""
    headers = {REQUEST_ID_HEADER: request_id()}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = f"{max(1, round(error.retry_after_seconds))}"
    return headers


class RequestGate:
    """Outermost middleware; the application behind it sees only requests that may pass."""

    def __init__(
        self,
        app: Any,
        *,
        keys: KeyRing,
        health: Health,
        metrics: RequestMetrics,
        admin_prefixes: Sequence[str],
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._keys = keys
        self._health = health
        self._metrics = metrics
        self._admin_prefixes = tuple(admin_prefixes)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = _Answer(send, self._health)
        with request(headers.get(REQUEST_ID_HEADER), None):
            if scope["path"] in OPEN_PATHS:
                await self._serve(scope, receive, answer, headers)
            else:
                await self._serve_measured(scope, receive, answer, headers)

    async def _serve_measured(
        self, scope: MutableMapping[str, Any], receive: Receive, answer: "_Answer", headers: dict[str, str]
    ) -> None:
        started = time.monotonic()
        attributes = {"http.request.method": scope["method"]}
        with (
            span(scope["method"], attributes, kind="server", headers=headers) as served,
            self._metrics.in_flight("http"),
        ):
            try:
                await self._serve(scope, receive, answer, headers)
            finally:
                self._record(scope, answer.status, time.monotonic() - started, served)

    async def _serve(
        self, scope: MutableMapping[str, Any], receive: Receive, answer: "_Answer", headers: dict[str, str]
    ) -> None:
        try:
            with request(request_id(), _timeout(headers)):
                self._check(scope["path"], headers)
                async with asyncio.timeout(remaining_seconds()):
                    await self._app(scope, self._limited(receive), answer.send)
        except TimeoutError:
            await answer.fail(DeadlineExceeded("the request's deadline passed"))
        except ServiceError as error:
            await answer.fail(error)
        except Exception:
            logger.exception("unexpected failure", extra={"data": {"path": scope["path"]}})
            await answer.fail(ServiceError(f"internal error; request id {request_id()}"))

    def _check(self, path: str, headers: dict[str, str]) -> None:
        if path not in OPEN_PATHS:
            needed = Scope.ADMIN if path.startswith(self._admin_prefixes) else Scope.READ
            self._keys.authorize(headers.get("authorization") or headers.get("x-api-key"), needed)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise TooLarge(f"the body has {length} bytes; the limit is {self._max_body_bytes}")

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> ASGIMessage:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise TooLarge(f"the body is over the limit of {self._max_body_bytes} bytes")
            return message

        return limited

    def _record(self, scope: MutableMapping[str, Any], status: int, seconds: float, served: Span) -> None:
        route = scope.get("route")
        method = getattr(route, "path", None) or "unknown"  # the template, so that cardinality is bounded
        outcome = "ok" if status < 400 else KIND_BY_HTTP.get(status, ErrorKind.INTERNAL).value
        self._metrics.record("http", method, outcome, seconds)
        served.rename(f"{scope['method']} {method}")
        served.note({"http.route": method, "http.response.status_code": status})
        if outcome != "ok":
            served.fail(outcome)


class _Answer:
    """Remembers how far the answer got, because that decides how an error can still be told."""

    def __init__(self, send: Send, health: Health) -> None:
        self._send_as_is = send
        self._health = health
        self._is_event_stream = False
        self._complete = False
        self.status = 0

    async def send(self, message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            name = REQUEST_ID_HEADER.encode()
            headers = [header for header in message.get("headers", []) if header[0] != name]
            self._is_event_stream = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            message["headers"] = [*headers, (name, request_id().encode())]
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def _send(self, message: ASGIMessage) -> None:
        """While the process stops, every answer asks the client to connect anew, to another replica."""
        if message["type"] == "http.response.start" and self._health.draining:
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await self._send_as_is(message)

    async def fail(self, error: ServiceError) -> None:
        """An ordinary error where nothing was sent; the last event of a stream that began; else a broken answer."""
        if self.status:
            if self._is_event_stream and not self._complete:
                event = b"event: error\ndata: " + orjson.dumps(error_body(error)) + b"\n\n"
                await self._send({"type": "http.response.body", "body": event, "more_body": False})
            return
        self.status = STATUS[error.kind][0]
        headers = {"content-type": "application/json", **error_headers(error)}
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await self._send({"type": "http.response.body", "body": orjson.dumps(error_body(error))})


def _timeout(headers: dict[str, str]) -> float | None:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError as error:
        raise InvalidRequest(f"header {TIMEOUT_HEADER} takes seconds, got '{text}'") from error
    if not seconds > 0:
        raise InvalidRequest(f"header {TIMEOUT_HEADER} takes a positive number of seconds, got '{text}'")
    return seconds
