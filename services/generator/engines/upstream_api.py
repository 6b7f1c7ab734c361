"""Forwards OpenAI requests to the engine's own server, and its answers back, both unchanged."""

import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager

from searchrl.errors import ServiceError, Unavailable
from searchrl.platform.request_context import remaining_seconds
from searchrl.platform.telemetry.tracing import span, start_span, trace_headers
from services.generator.engines.event_stream import EventBuffer
from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_http import (
    UpstreamHttp,
    UpstreamReply,
    UpstreamStream,
    error_for_status,
    is_caller_error,
)
from services.generator.metrics import EngineMetrics

# What shows that a stream is complete: OpenAI's mark, a finish reason, or an error that the server reports itself.
# The text of a reply contains none of them: its quotation marks are escaped, and it has no line of its own.
_ENDED = re.compile(rb'^data:\s*\[DONE\]|"finish_reason"\s*:\s*"|"error"\s*:\s*[{"]', re.MULTILINE)


class UpstreamApi:
    """Forwards bodies, so that every field of the engine's server is supported. Does not retry: the caller decides.

    A complete answer takes at most ``timeout_seconds``. A stream must have an event within each such span, and ends
    after ``stream_seconds`` in any case. ``outcome`` is called with the outcome of every request.
    """

    def __init__(
        self,
        settings: ChatEngineSettings,
        metrics: EngineMetrics,
        *,
        use_proxies: bool = True,
        outcome: Callable[[ServiceError | None], object] | None = None,
    ) -> None:
        self._http = UpstreamHttp(
            settings.base_url, key=settings.secret_key(), headers=settings.secret_headers(), use_proxies=use_proxies
        )
        self._metrics = metrics
        self._span_attributes = {"searchrl.engine": metrics.engine}
        self._timeout_seconds = settings.timeout_seconds
        self._stream_seconds = settings.stream_seconds
        self._outcome = outcome or (lambda _: None)

    async def post(self, path: str, body: bytes) -> UpstreamReply:
        """Send ``body`` to ``path`` ("/chat/completions") and return the complete answer.

        Raises:
            ServiceError: the server cannot be reached, is overloaded, failed, or refused what the caller did not
                choose (the configured key, the address); also a refusal of the request that is not in OpenAI's form.
        """
        with self._report_outcome(), span(f"POST /v1{path}", self._span_attributes, kind="client"):
            reply = await self._http.post(path, body, self._limit(self._timeout_seconds), dict(trace_headers()))
            _raise_for_status(reply)
            return reply

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[bytes | UpstreamReply]:
        """Yield complete events as they are received; an answer that is no event stream is one ``UpstreamReply``.

        Raises:
            ServiceError: as ``post``; also if the stream breaks off. What was yielded then ends with a complete event.
        """
        # Not ``span``: a generator must not leave a span current in its reader's code while it is suspended.
        called = start_span(f"POST /v1{path}", self._span_attributes, kind="client")
        try:
            async with aclosing(self._stream(path, body, dict(trace_headers(called)))) as parts:
                async for part in parts:
                    yield part
        except BaseException as error:
            called.record_error(error)
            raise
        finally:
            called.end()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _stream(self, path: str, body: bytes, headers: dict[str, str]) -> AsyncGenerator[bytes | UpstreamReply]:
        # A generator that its reader closes early raises GeneratorExit here: it counts as cancelled in the
        # metrics, and tells the watch over the engine nothing.
        with self._report_outcome():
            ends_at = time.monotonic() + self._stream_seconds
            stream = await self._http.stream(path, body, self._limit(self._timeout_seconds), headers)
            try:
                if not stream.is_event_stream:
                    reply = await stream.read_all(self._limit(self._timeout_seconds))
                    _raise_for_status(reply)
                    yield reply
                    return
                async with aclosing(self._events(stream, ends_at)) as events:
                    async for part in events:
                        yield part
            finally:
                stream.close()

    async def _events(self, stream: UpstreamStream, ends_at: float) -> AsyncGenerator[bytes]:
        events, has_ended = EventBuffer(), False
        last_event = time.monotonic()  # only complete events count: bytes alone do not keep a stream open
        while part := await stream.read_part(
            self._limit(min(ends_at, last_event + self._timeout_seconds) - time.monotonic())
        ):
            complete = events.add(part)
            if complete:
                has_ended = has_ended or _ENDED.search(complete) is not None
                yield complete
                last_event = time.monotonic()
        rest = events.rest()
        if rest and (has_ended or _ENDED.search(rest)):
            yield rest
        elif not has_ended:  # a server that dies may close the connection as if the reply were complete
            raise Unavailable("the engine's stream ended in the middle of its reply", None)

    def _limit(self, seconds: float) -> float:
        left = remaining_seconds()
        return time.monotonic() + (seconds if left is None else min(left, seconds))

    @contextmanager
    def _report_outcome(self) -> Iterator[None]:
        try:
            with self._metrics.measure_call("proxy"):
                yield
        except ServiceError as error:
            self._outcome(error)
            raise
        self._outcome(None)


def _raise_for_status(reply: UpstreamReply) -> None:
    """Raise for any status but a success or a refusal of the request itself, which the caller receives as it is.

    Model and address come from the settings, so a 404 means that the settings are wrong, as a 401 does.
    """
    # The caller does not know the engine's address, so it could do nothing with the redirect.
    if 300 <= reply.status < 400:
        raise error_for_status(reply.status, b"it redirects; set engine.base_url to the final address")
    if not reply.is_success and not is_caller_error(reply.status, reply.content):
        raise error_for_status(reply.status, reply.content, reply.retry_after)
