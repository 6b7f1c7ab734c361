"""Connections of an HTTP server: answers are sent without delay, and slow, silent or many clients are bounded."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry

from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.http_protocol import MAX_HEADER_BYTES, BoundedHttpProtocol
from searchrl.platform.server.serve import run_on_fast_loop
from searchrl.platform.server.server_runner import run_servers
from searchrl.platform.settings import Listen, ServiceSettings

LONG = 30.0  # seconds; reached only if the server does not close the connection
BODY = b'{"some": "body"}'
HEADERS = b"POST /size HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n"


def example_routes() -> APIRouter:
    router = APIRouter()

    @router.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @router.get("/much")
    async def much() -> Response:
        return Response(b"x" * (64 << 20))

    return router


@asynccontextmanager
async def serving(folder: Path, **listen: Any) -> AsyncIterator[int]:
    """Run a server on a free port; yields the port."""
    keys, health, registry, stop = KeyRing(), Health(), CollectorRegistry(), asyncio.Event()
    ready, ready_file = asyncio.Event(), folder / "ready.json"
    health.subscribe(lambda is_ready: ready.set() if is_ready else None)
    settings = ServiceSettings(
        listen=Listen(http_port=0, grpc_port=0, drain_seconds=1, **listen), ready_file=ready_file
    )
    server = build_grpc_server(lambda _: None, full_name="example", keys=keys, health=health, registry=registry)
    app = build_http_app("example", [example_routes()], keys=keys, health=health, registry=registry)
    running = asyncio.create_task(run_servers(server, app, settings=settings, health=health, stop=stop))
    await ready.wait()
    await asyncio.sleep(0)  # the runner writes the ready file in the same step, after it reports readiness
    try:
        yield int(json.loads(ready_file.read_text())["http"].rpartition(":")[2])
    finally:
        stop.set()
        await running


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """Everything that the server sends before it closes the connection."""
    try:
        return await asyncio.wait_for(reader.read(), LONG)
    except ConnectionResetError:
        return b""


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """TCP_NODELAY of each accepted connection, as the kernel reports it."""
    found: list[int] = []
    made: Callable[..., None] = BoundedHttpProtocol.connection_made

    def note(self: BoundedHttpProtocol, transport: asyncio.Transport) -> None:
        made(self, transport)
        connection = transport.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(BoundedHttpProtocol, "connection_made", note)
    return found


async def ask_once(folder: Path, host: str) -> bytes:
    async with serving(folder, host=host) as port:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(HEADERS + BODY)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return answer


@pytest.mark.parametrize("run", [run_on_fast_loop, asyncio.run])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_connections_send_at_once(
    run: Callable[..., bytes], host: str, accepted: list[int], tmp_path: Path
) -> None:
    assert run(ask_once(tmp_path, host)).startswith(b"HTTP/1.1 200")
    assert len(accepted) == 1
    assert all(accepted)


async def test_the_listening_socket_alone_makes_accepted_connections_send_at_once() -> None:
    from searchrl.platform.server.server_runner import _bind  # the socket that uvicorn gets, here without our protocol

    made: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Plain(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connection = transport.get_extra_info("socket")
            made.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    server = await asyncio.get_running_loop().create_server(Plain, sock=_bind("127.0.0.1", 0, "http_port"))
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    assert await asyncio.wait_for(made, LONG)
    writer.close()
    server.close()


@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: here\r\n"])
async def test_a_connection_without_a_complete_header_is_closed(sent: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path, header_seconds=0.05) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_client_that_sends_its_headers_slowly_is_disconnected(tmp_path: Path) -> None:
    async with serving(tmp_path, header_seconds=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reading = asyncio.create_task(until_closed(reader))
        writer.write(b"GET /livez HTTP/1.1\r\n")
        while not reading.done():
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.01)
        # bytes sent after the close may make the client's kernel drop the answer, but not the end of the stream
        assert reading.result()[:12] in (b"HTTP/1.1 408", b"")
        writer.close()


@pytest.mark.parametrize("body", [b"", BODY[:-1]])
async def test_a_body_that_does_not_end_is_answered_and_closed(body: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path, body_seconds=0.05) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEADERS + body)
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_second_request_of_a_kept_connection_is_bounded_too(tmp_path: Path) -> None:
    async with serving(tmp_path, header_seconds=0.05) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEADERS + BODY)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /livez")
        assert b"HTTP/1.1 408" in await until_closed(reader)
        writer.close()


async def test_a_kept_connection_that_is_idle_between_requests_stays(tmp_path: Path) -> None:
    async with serving(tmp_path, header_seconds=0.05, body_seconds=0.05) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(HEADERS + BODY)
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"16"
            await asyncio.sleep(0.15)  # longer than either limit
        writer.close()


async def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nlong: " + b"a" * (MAX_HEADER_BYTES + 1))
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 431")
        writer.close()


async def test_a_body_larger_than_the_headers_may_be_is_read(tmp_path: Path) -> None:
    size = 3 * MAX_HEADER_BYTES
    async with serving(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEADERS.replace(b"16", b"%d" % size) + b"x" * size)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_connections_over_the_limit_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, max_connections=2) as port:
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in kept:
            writer.write(HEADERS + BODY)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 503")
        for _, each in [*kept, (reader, writer)]:
            each.close()


def test_a_client_that_reads_nothing_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from searchrl.platform.server import server_runner
    from searchrl.platform.server.http_protocol import ConnectionLimits

    monkeypatch.setattr(server_runner, "ConnectionLimits", lambda *given: ConnectionLimits(*given, stalled_seconds=0.1))

    async def leave_it_unread() -> None:
        async with serving(tmp_path) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            reader._transport.pause_reading()  # pyright: ignore
            writer.write(b"GET /much HTTP/1.1\r\nhost: here\r\n\r\n")
            await asyncio.sleep(0.5)  # longer than the limit
            reader._transport.resume_reading()  # pyright: ignore
            assert len(await until_closed(reader)) < 64 << 20
            writer.close()

    run_on_fast_loop(leave_it_unread())


def test_no_service_opens_an_http_server_of_its_own() -> None:
    root = Path(__file__).parents[4]
    modules = [*(root / "searchrl").rglob("*.py"), *(root / "services").rglob("*.py")]
    found = {path.name for path in modules if re.search(r"^\s*(import|from) uvicorn", path.read_text(), re.M)}
    assert found == {"http_protocol.py", "server_runner.py"}
