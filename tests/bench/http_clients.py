"""Provides the clients of a benchmark: a closed loop over keep-alive HTTP connections with little overhead."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

START_SECONDS = 120  # generous, because loading torch and an index is slow on a busy machine


def machine() -> str:
    """Return the number of processors and their name in ``/proc/cpuinfo``."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0] if names else 'unknown'}"


def code_of(tree: Path | str) -> dict[str, str]:
    """Return the environment of a process that runs the code of a checkout."""
    return os.environ | {"PYTHONPATH": str(tree)}


@contextmanager
def server(module: str, *assignments: str, tree: Path | None = None) -> Iterator[tuple[str, int]]:
    """Run ``python -m module --set ...`` until the block ends; yields host and port of its HTTP server.

    Args:
        tree: another checkout whose code runs instead of this one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready, log = Path(folder) / "ready.json", Path(folder) / "log"
        settings = ["listen.http_port=0", "listen.grpc_port=0", f"ready_file={ready}", *assignments]
        command = [sys.executable, "-m", module, *(part for text in settings for part in ("--set", text))]
        where = tree or Path.cwd()
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=where, env=code_of(where))
        try:
            end = time.monotonic() + START_SECONDS
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{module} did not start: {log.read_text()}")
                time.sleep(0.05)
            host, _, port = json.loads(ready.read_text())["http"].rpartition(":")
            yield host, int(port)
        finally:
            process.terminate()
            process.wait()


def post(path: str, body: object) -> bytes:
    """Return the bytes of a POST request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


async def load(
    address: tuple[str, int], make: Callable[[int], bytes], clients: int, seconds: float
) -> dict[str, float]:
    """Measure clients that each send a request, wait for the complete answer and send the next.

    The first half second opens the connections and is not counted.
    """
    latencies: list[float] = []
    numbers = iter(range(10**9))
    begun = time.perf_counter() + 0.5
    end = begun + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*address)
        while (started := time.perf_counter()) < end:
            writer.write(make(next(numbers)))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the server answered {head[:200]!r}")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            if started >= begun:
                latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    milliseconds = np.array(latencies) * 1000
    return {
        "clients": clients,
        "per_second": round(len(latencies) / seconds, 1),
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 2),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 2),
    }
