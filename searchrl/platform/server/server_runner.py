"""Serves both transports in one event loop, and stops them gracefully.

Order of a start: bind both ports -> serve probes -> ``start`` of the service -> ready -> ready file. So an occupied
port is reported before anything heavy is loaded, and probes are answered while it loads.
Order of a stop: not ready -> requests in flight finish, for about ``drain_seconds`` at most -> ``drain`` of the
service -> buffered spans -> ready file removed. Readiness ends first, so that load balancers send new requests to other
replicas. The spans are sent in a thread, because a slow collector blocks for seconds.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from fastapi import FastAPI

from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from searchrl.platform.server.http_protocol import BoundedHttpProtocol, ConnectionLimits
from searchrl.platform.server.tls import ServerTls
from searchrl.platform.settings import Listen, ServiceSettings
from searchrl.platform.telemetry.tracing import shut_down_tracing
from searchrl.storage.durable_files import atomic_write

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Longer than clients and proxies keep idle connections (httpx 5 s, nginx and load balancers 60 s).

So the client closes first, and no request arrives on a connection that the server is just closing.
"""
IDLE_CLOSE_FRACTION = 0.05
"""Share of the draining time for which kept HTTP connections stay open: 1 s of the default 20 s.

An answer in this time closes its connection properly. Larger: idle connections delay every stop; smaller: more clients
find their connection closed while they send.
"""


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling, because the runner stops both servers together."""

    def __init__(self, config: uvicorn.Config, tls: ServerTls | None) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._tls = tls
        self._following: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._tls is not None and self.config.ssl is not None:
            self._following = asyncio.create_task(self._tls.follow(self.config.ssl))
        self.listening.set()

    async def close_idle_connections(self, seconds: float) -> None:
        """Continue to serve kept connections for up to ``seconds``, then let uvicorn shut down.

        A client may be sending a request right now; each answer closes its connection (see GuardMiddleware).
        """
        end = asyncio.get_running_loop().time() + seconds
        while self.server_state.connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._following is not None:
            self._following.cancel()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_servers(
    grpc_server: grpc.aio.Server,
    http_app: FastAPI,
    *,
    settings: ServiceSettings,
    health: Health,
    start: Callable[[], Awaitable[None]] | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``; then drain.

    Args:
        start: runs after the ports are open and before ready, e.g. loads an index.
        drain: runs after the requests in flight have finished, e.g. saves a checkpoint.

    Raises:
        ConfigurationError: a port is taken, or a certificate or an input of ``start`` is unusable.
    """
    stopping = stop or asyncio.Event()
    listen = settings.listen
    http_socket = _bind(listen.host, listen.http_port, "http_port")
    tls = ServerTls.of(listen.tls_certificate, listen.tls_private_key)
    http_app.state.request_seconds = listen.request_seconds
    http = _http_server(http_app, listen, tls)
    grpc_port = _bind_grpc(grpc_server, listen.host, listen.grpc_port, tls)
    await grpc_server.start()
    serving = asyncio.create_task(http.serve(sockets=[http_socket]))
    http_port = http_socket.getsockname()[1]

    async def come_up() -> None:
        await http.listening.wait()
        if start is not None:
            await start()
        if not health.draining:
            health.set_ready()
        logger.info("ready", extra={"data": {"http_port": http_port, "grpc_port": grpc_port}})
        _write_ready_file(settings.ready_file, listen.host, http_port, grpc_port)

    with _signals(stopping):
        ends = {serving, asyncio.create_task(stopping.wait())}
        coming_up = asyncio.create_task(come_up())
        try:
            await asyncio.wait({coming_up, *ends}, return_when=asyncio.FIRST_COMPLETED)
            # Else a stop came first. Awaited to raise the error of a failed start.
            if coming_up.done():
                await coming_up
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            coming_up.cancel()  # has no effect unless the stop came during the start
            health.start_draining()
            logger.info("draining", extra={"data": {"seconds": listen.drain_seconds}})
            await _finish_requests(http, grpc_server, serving, listen.drain_seconds)
            # A start that was cancelled may still be ending what it has started, e.g. a process; ``drain`` comes after.
            await asyncio.wait({coming_up})
            if drain is not None:
                await drain()
            await asyncio.to_thread(shut_down_tracing)
            if settings.ready_file is not None:
                settings.ready_file.unlink(missing_ok=True)


async def _finish_requests(
    http: _HttpServer, grpc_server: grpc.aio.Server, serving: asyncio.Task[None], seconds: float
) -> None:
    """Let both servers finish the requests in flight, for at most ``seconds``, and close their ports."""
    # uvicorn reads it when it shuts down. The two servers drain at the same time, so both get all of ``seconds``.
    http.config.timeout_graceful_shutdown = int(seconds) + 1  # whole seconds, rounded up
    await asyncio.gather(http.close_idle_connections(seconds * IDLE_CLOSE_FRACTION), grpc_server.stop(seconds), serving)


def _http_server(app: FastAPI, listen: Listen, tls: ServerTls | None) -> _HttpServer:
    options: dict[str, Any] = dict(tls.uvicorn_options()) if tls else {}
    limits = ConnectionLimits(listen.max_connections, listen.header_seconds, listen.body_seconds)
    # No service has web sockets or lifespan handlers; the access log is replaced by metrics and spans.
    options |= {"http": partial(BoundedHttpProtocol, limits=limits), "ws": "none"}
    options |= {"log_config": None, "access_log": False, "lifespan": "off", "timeout_keep_alive": KEEP_ALIVE_SECONDS}
    return _HttpServer(uvicorn.Config(app, **options), tls)


def _bind(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP is named because asyncio disables Nagle's algorithm only for sockets that say so; with the default of
    # 0, accepted connections would keep it.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A restarted service must not wait for connections of the old one in TIME_WAIT, which last a minute on Linux. A
    # port on which another process listens is refused nevertheless.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigurationError(_port_message(host, port, setting, str(error.strerror))) from error
    return bound


def _bind_grpc(server: grpc.aio.Server, host: str, port: int, tls: ServerTls | None) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        chosen = server.add_secure_port(address, tls.grpc_credentials()) if tls else server.add_insecure_port(address)
    # grpcio raises without a reason; older versions returned port 0 instead.
    except RuntimeError as error:
        raise ConfigurationError(_port_message(host, port, "grpc_port", "cannot bind")) from error
    if not chosen:
        raise ConfigurationError(_port_message(host, port, "grpc_port", "cannot bind"))
    return chosen


def _port_message(host: str, port: int, setting: str, reason: str) -> str:
    return f"cannot listen on {host}:{port} ({reason}): free the port or set listen.{setting} to another one (0 = any)"


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # In the loop, not by ``signal.signal``, whose handler could not wake a loop that waits for events.
        loop.add_signal_handler(number, stopping.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _write_ready_file(path: Path | None, host: str, http_port: int, grpc_port: int) -> None:
    """Write the addresses; atomic, so that a reader never sees an incomplete file."""
    if path is not None:
        addresses = {"http": f"{host}:{http_port}", "grpc": f"{host}:{grpc_port}", "pid": os.getpid()}
        atomic_write(path, json.dumps(addresses), durable=False)
