"""ASGI middleware that gives each HTTP request its id, deadline, authorization, size limit, metrics and error form.

A request passes these stages, outermost first:

    request id -> span and metrics (not for probes) -> deadline of the caller -> key and declared size
    -> default deadline -> CallerWatch -> application

Whatever a stage raises becomes an error answer in ``_serve``, inside the span, so that it is measured as well.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import orjson

from searchrl.errors import DeadlineExceeded, ErrorKind, InvalidRequest, ServiceError, TooLarge
from searchrl.platform.health import Health
from searchrl.platform.json_text import without_lone_surrogates
from searchrl.platform.request_context import (
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
    default_deadline,
    lift_default_deadline,
    remaining_seconds,
    request,
    request_id,
)
from searchrl.platform.server.auth import KeyRing, Scope
from searchrl.platform.server.caller_watch import ASGIMessage, BodyBudget, CallerWatch, Receive
from searchrl.platform.status_map import KIND_BY_HTTP, STATUS
from searchrl.platform.telemetry.metrics_endpoint import ABANDONED, RequestMetrics
from searchrl.platform.telemetry.tracing import Span, span

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/health"})

LONGEST_TIMEOUT_SECONDS = 1e8
"""About three years. Larger values, infinity and NaN are refused as mistakes instead of being given to a timer."""
CLIENT_CLOSED = 499
"""Status recorded if the caller disconnected before its answer was complete (as nginx does); nobody receives it."""

Send = Callable[[ASGIMessage], Awaitable[None]]
ErrorShape = Callable[[ServiceError], Mapping[str, object]]


def error_body(error: ServiceError) -> dict[str, object]:
    """Return the JSON form of an error, for all routes without a form of their own."""
    message = without_lone_surrogates(str(error))
    return {"error": {"kind": error.kind.value, "message": message, "request_id": request_id()}}


def shape_of(path: str, shapes: Mapping[str, ErrorShape]) -> ErrorShape:
    """Return the error form registered for the longest prefix of ``path``, else ``error_body``."""
    prefixes = [prefix for prefix in shapes if path.startswith(prefix)]
    return shapes[max(prefixes, key=len)] if prefixes else error_body


def error_headers(error: ServiceError) -> dict[str, str]:
    """Return the headers of an error answer."""
    headers = {REQUEST_ID_HEADER: request_id()}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = f"{max(1, round(error.retry_after_seconds))}"  # HTTP knows only integers here
    if error.kind is ErrorKind.UNAUTHENTICATED:  # a browser then asks for a password, which is the key
        headers["www-authenticate"] = 'Basic realm="searchrl", charset="UTF-8"'
    return headers


class GuardMiddleware:
    """Outermost middleware; the application behind it sees only requests that are allowed.

    Args:
        admin_prefixes: paths that need a key with scope admin.
        max_body_bytes: largest body of one request.
        error_shapes: other forms of errors by path prefix, e.g. for OpenAI-compatible routes.
    """

    def __init__(
        self,
        app: Any,
        *,
        keys: KeyRing,
        health: Health,
        metrics: RequestMetrics,
        admin_prefixes: Sequence[str],
        max_body_bytes: int,
        error_shapes: Mapping[str, ErrorShape] | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._health = health
        self._metrics = metrics
        self._admin_prefixes = tuple(admin_prefixes)
        self._budget = BodyBudget(max_body_bytes)
        self._error_shapes = error_shapes or {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Latin-1 decodes every byte, so a header of arbitrary bytes cannot raise here, outside the error handling.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = _Answer(send, self._health, shape_of(scope["path"], self._error_shapes))
        with request(headers.get(REQUEST_ID_HEADER), None):
            # Probes and scrapes come every few seconds; counted, they would hide the callers' requests in metrics and
            # traces.
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
                self._record(scope, answer, time.monotonic() - started, served)

    async def _serve(
        self, scope: MutableMapping[str, Any], receive: Receive, answer: "_Answer", headers: dict[str, str]
    ) -> None:
        try:
            # Entered a second time, inside the ``try``, with the same id: a malformed deadline is an error that gets an
            # answer.
            with request(request_id(), _timeout(headers)):
                self._check(scope["path"], headers)
                await self._run(scope, receive, answer)
        except TimeoutError:
            await answer.fail(DeadlineExceeded("the request's deadline passed"))
        except ServiceError as error:
            await answer.fail(error)
        except Exception:
            logger.exception("unexpected failure", extra={"data": {"path": scope["path"]}})
            await answer.fail(ServiceError(f"internal error; request id {request_id()}"))

    async def _run(self, scope: MutableMapping[str, Any], receive: Receive, answer: "_Answer") -> None:
        """Run the application until it has answered, its deadline passes or its caller disconnects.

        One timeout serves both deadlines: the caller's if it named one, else the server's default, which the
        application may lift for a long call; lifting reschedules the timeout to never.
        """
        # The timeout is the outer block and the watch the inner one: a cancellation by the timeout passes through the
        # watch, and becomes TimeoutError outside of it.
        async with AsyncExitStack() as entered:
            timeout = await entered.enter_async_context(asyncio.timeout(remaining_seconds()))
            seconds: float | None = scope["app"].state.request_seconds
            if timeout.when() is None and seconds is not None:
                entered.enter_context(default_deadline(seconds, lambda: timeout.reschedule(None)))
                timeout.reschedule(asyncio.get_running_loop().time() + seconds)
            caller = CallerWatch(receive, self._budget, lambda: answer.is_complete)
            async with caller:
                await self._app(scope, caller.receive, answer.send)
            answer.was_abandoned = caller.has_left

    def _check(self, path: str, headers: dict[str, str]) -> None:
        if path not in OPEN_PATHS:
            needed = Scope.ADMIN if path.startswith(self._admin_prefixes) else Scope.READ
            # Before the body: a caller without a key cannot make the server hold one.
            self._keys.authorize(headers.get("authorization") or headers.get("x-api-key"), needed)
        # Refused before a byte of the body is read; a body without a length is counted while it is read (CallerWatch).
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._budget.max_body_bytes:
            raise TooLarge(f"the body has {length} bytes; the limit is {self._budget.max_body_bytes}")

    def _record(self, scope: MutableMapping[str, Any], answer: "_Answer", seconds: float, served: Span) -> None:
        # FastAPI sets it when a route matches. Paths without a route share one label: scanners request thousands of
        # paths, and each would become a series.
        route = scope.get("route")
        method = getattr(route, "path", None) or "unknown"  # the template, so that cardinality is bounded
        status = CLIENT_CLOSED if answer.was_abandoned else answer.status
        rest = ErrorKind.INVALID if status < 500 else ErrorKind.INTERNAL  # 405 and the like
        outcome = "ok" if status < 400 else KIND_BY_HTTP.get(status, rest).value
        if answer.was_abandoned:
            outcome = ABANDONED
        self._metrics.record("http", method, outcome, seconds)
        served.rename(f"{scope['method']} {method}")
        served.set_attributes({"http.route": method, "http.response.status_code": status})
        if outcome != "ok":
            served.fail(outcome)


class _Answer:
    """Remembers how much of the answer was sent, because that decides how an error can still be reported."""

    def __init__(self, send: Send, health: Health, shape: ErrorShape) -> None:
        self._send_as_is = send
        self._health = health
        self._shape = shape
        self._is_event_stream = False
        self.is_complete = False
        self.was_abandoned = False
        self.status = 0

    async def send(self, message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            name = REQUEST_ID_HEADER.encode()
            # An error answer of the application carries the id already; twice, clients would join the two values by a
            # comma.
            headers = [header for header in message.get("headers", []) if header[0] != name]
            self._is_event_stream = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            message["headers"] = [*headers, (name, request_id().encode())]
            if self._is_event_stream:
                lift_default_deadline()  # a stream lasts as long as its reader wants
        elif message["type"] == "http.response.body":
            self.is_complete = not message.get("more_body", False)
        await self._send(message)

    async def _send(self, message: ASGIMessage) -> None:
        """While the process drains, each answer closes its connection: the client reconnects, to another replica."""
        if message["type"] == "http.response.start" and self._health.draining:
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await self._send_as_is(message)

    async def fail(self, error: ServiceError) -> None:
        """Report an error: as an ordinary answer if nothing was sent, as the last event of a started event stream.

        An answer of another kind that has started cannot report it, and stays incomplete.
        """
        # A status cannot be changed once it is sent. A JSON body that stays incomplete makes uvicorn close the
        # connection, so that the client sees a failure and not a short answer.
        if self.status:
            if self._is_event_stream and not self.is_complete:
                event = b"event: error\ndata: " + orjson.dumps(self._shape(error)) + b"\n\n"
                await self._send({"type": "http.response.body", "body": event, "more_body": False})
            return
        self.status = STATUS[error.kind][0]
        headers = {"content-type": "application/json", **error_headers(error)}
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await self._send({"type": "http.response.body", "body": orjson.dumps(self._shape(error))})


def _timeout(headers: dict[str, str]) -> float | None:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError as error:
        raise InvalidRequest(f"header {TIMEOUT_HEADER} takes seconds, got '{text}'") from error
    if not 0 < seconds < LONGEST_TIMEOUT_SECONDS:
        raise InvalidRequest(f"header {TIMEOUT_HEADER} takes a positive number of seconds, got '{text}'")
    return seconds
