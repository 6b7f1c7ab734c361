"""Measures requests per second through the generator's gateway, and of the HTTP clients that it could use.

    python -m tests.bench.generator.gateway_throughput --seconds 3

All of them call a server with a fixed reply over real sockets. ``gateway`` is a generator process with ``engine.kind:
url``; the clients are called directly, in this process, as the gateway would call them. Prints a table: requests per
second, and the processor time of a request in milliseconds (of the gateway's process, or of this one), which is less
sensitive to other work on the machine. ``--json FILE`` also writes the numbers.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import openai
import psutil

from searchrl.platform.request_context import deadline
from services.generator.engines.upstream_http import UpstreamHttp
from tests.fakes.openai_stub import OK

CLIENTS = (1, 32, 128)
REPLY = json.dumps(OK).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: " + str(len(REPLY)).encode() + b"\r\n\r\n"
) + REPLY
BODY = json.dumps({"model": "stub-model", "messages": [{"role": "user", "content": "Capital of France?"}]}).encode()
Call = Callable[[], Awaitable[object]]


class FixedReply(asyncio.Protocol):
    """The upstream server: sends one fixed reply to every request, without parsing more than its length."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._held = b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (head := self._held.find(b"\r\n\r\n")) >= 0:
            length = 0
            for line in self._held[:head].lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if len(self._held) < head + 4 + length:
                return
            self._held = self._held[head + 4 + length :]
            self._transport.write(ANSWER)


async def serve_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(FixedReply, "127.0.0.1", port)
    await server.serve_forever()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(*arguments: str, tree: Path) -> Iterator[psutil.Process]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    started = subprocess.Popen([sys.executable, *arguments], env=environment, cwd=tree)
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(20)


async def until_up(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url} did not come up")


async def rate(call: Call, clients: int, seconds: float, worker: psutil.Process) -> tuple[float, float]:
    """Measure requests per second, and the worker's processor time per request in milliseconds."""
    done = 0
    end = 0.0

    async def one() -> None:
        nonlocal done
        while time.monotonic() < end:
            await call()
            done += 1

    await asyncio.gather(*(call() for _ in range(clients)))  # opens the connections before the measurement
    before, end = sum(worker.cpu_times()[:2]), time.monotonic() + seconds
    await asyncio.gather(*(one() for _ in range(clients)))
    return done / seconds, 1000 * (sum(worker.cpu_times()[:2]) - before) / done


class RawClients:
    """Keeps a socket per client and reads only the status, so that the load generator costs little processor time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n"
        self._request = f"{head}content-type: application/json\r\n\r\n".encode() + BODY

    async def __call__(self) -> None:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(head.decode())
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        self._free.append((reader, writer))


@contextlib.asynccontextmanager
async def client_calls(port: int) -> AsyncIterator[dict[str, Call]]:
    url = f"http://127.0.0.1:{port}/v1"
    ours = UpstreamHttp(url, use_proxies=False)
    limits = httpx.Limits(max_connections=512, max_keepalive_connections=512)
    plain = httpx.AsyncClient(limits=limits, trust_env=False)
    sdk = openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
    )
    messages = json.loads(BODY)["messages"]

    async def ask_ours() -> object:
        with deadline(60):
            return await ours.post("/chat/completions", BODY, time.monotonic() + 60, {})

    headers = {"content-type": "application/json"}
    yield {
        "client aiohttp (now)": ask_ours,
        "client httpx (passing on, before)": lambda: plain.post(
            f"{url}/chat/completions", content=BODY, headers=headers, timeout=60
        ),
        "client openai + httpx (chat, before)": lambda: sdk.chat.completions.create(
            model="stub-model", messages=messages, timeout=60
        ),
    }
    await ours.close()
    await plain.aclose()
    await sdk.close()


async def measure(seconds: float, generator_root: Path) -> dict[str, dict[int, tuple[float, float]]]:
    upstream, http, grpc = free_port(), free_port(), free_port()
    results: dict[str, dict[int, tuple[float, float]]] = {}
    this = psutil.Process()
    with process("-m", "tests.bench.generator.gateway_throughput", "--upstream", str(upstream), tree=Path.cwd()):
        settings = {
            "engine.kind": "url",
            "engine.base_url": f"http://127.0.0.1:{upstream}",
            "engine.model": "stub-model",
            "listen.http_port": http,
            "listen.grpc_port": grpc,
        }
        flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        with process("-m", "services.generator", *flags, tree=generator_root) as gateway:
            await until_up(f"http://127.0.0.1:{http}/readyz")
            async with client_calls(upstream) as calls:
                for name, call in {"gateway": RawClients(http), **calls}.items():
                    worker = gateway if name == "gateway" else this
                    results[name] = {clients: await rate(call, clients, seconds, worker) for clients in CLIENTS}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--generator", type=Path, default=Path.cwd(), help="tree whose generator is the gateway")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        asyncio.run(serve_upstream(options.upstream))
        return
    results = asyncio.run(measure(options.seconds, options.generator.resolve()))
    sys.stdout.write(
        f"| requests/s (CPU ms each) | {' | '.join(f'{n} clients' for n in CLIENTS)} |\n|---|---|---|---|\n"
    )
    for name, row in results.items():
        cells = " | ".join(f"{row[n][0]:,.0f} ({row[n][1]:.2f})" for n in CLIENTS)
        sys.stdout.write(f"| {name} | {cells} |\n")
    if options.json:
        options.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
