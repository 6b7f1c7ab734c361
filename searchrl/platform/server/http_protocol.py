"""Limits the number of HTTP connections, the size of headers, and the time that slow clients may take.

These limits apply to the connection, below the ASGI application, which sees a request only when its headers are
complete. Everything in this module runs in the event loop, as callbacks of the transport.
"""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from searchrl.errors import ErrorKind

MAX_HEADER_BYTES = 64 << 10
"""Headers are held in memory until they are complete; those of ordinary requests take a few KiB."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one server's connections; the defaults are those of ``Listen``, which does not set the last one.

    Attributes:
        max_connections: further ones are answered 503 and closed.
        header_seconds: from the connection, or a request's first byte, to the end of its headers.
        body_seconds: from there to the end of the body.
        stalled_seconds: how long a client may leave an answer unread while the send buffer is full.

    Larger values let slow clients hold more memory and connections; smaller ones cut off clients on slow networks.
    """

    max_connections: int = 4096
    header_seconds: float = 20.0
    body_seconds: float = 60.0
    stalled_seconds: float = 60.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits for clients that are slow, silent or too many.

    One timer per connection covers first the headers, then the body; it is off while the application works and while
    the connection is idle between requests. ``_header_bytes`` counts what was received since the last body part or
    end of a message, which approximates the size of the headers.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        send_at_once(transport)
        # ``>``: uvicorn has added this connection to the set already.
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, ErrorKind.OVERLOADED, f"{self._limits.max_connections} connections are open")
        else:
            self._allow(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()  # cancels the stall timer
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._header_bytes += len(data)
        super().data_received(data)
        # httptools (llhttp) limits neither the number nor the size of headers.
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(431, ErrorKind.TOO_LARGE, f"the headers are over {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # For the first request the time runs from the connection on, which also closes connections that never send a
        # byte; for later ones from their first byte, so that an idle kept connection is left to uvicorn's keep-alive
        # timeout.
        if self._timer is None:
            self._allow(self._limits.header_seconds)

    def on_headers_complete(self) -> None:
        # For a request without a body the parser calls ``on_message_complete`` next, in the same call, which stops the
        # timer again.
        self._allow(self._limits.body_seconds)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._header_bytes = 0
        self._disarm()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        # ``abort``, not ``close``: close would first wait until the client reads what is buffered, which is what it
        # does not do.
        self._stalled = self.loop.call_later(self._limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _allow(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._is_late, seconds)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_late(self, seconds: float) -> None:
        if self.flow.read_paused:  # this server does not read at the moment, so the client is not late
            self._allow(seconds)
            return
        self._timer = None
        self._refuse(408, ErrorKind.DEADLINE, f"the request was not complete after {seconds:g} seconds")

    def _refuse(self, status: int, kind: ErrorKind, message: str) -> None:
        """Answer with an error unless an answer has started, and close the connection."""
        # Bytes written into an answer that has started would be taken for a part of its body.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"error": {"kind": kind.value, "message": message}})
            fields = b"content-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: "
            self.transport.write(STATUS_LINE[status] + fields + b"%d\r\n\r\n" % len(body) + body)
        self.transport.close()


def send_at_once(transport: asyncio.BaseTransport) -> None:
    """Disable Nagle's algorithm (TCP_NODELAY).

    With it, the second part of an answer waits for the client's delayed acknowledgment of the first: 40 ms.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
