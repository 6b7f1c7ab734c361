"""Measures the cost of training's calls: AnswerFromContext and Judge against an empty call of the same server.

    python -m tests.bench.generator.environment_calls --calls 4000 --concurrency 200 --output result.json

Starts the generator as a process with the small world's reader and calls it over gRPC, as one RL step does: all calls
of a wave at once. ``cpu`` is the server's processor time per call. ``ListMethods`` does nothing, so it shows the cost
of gRPC and the interceptor alone; the difference is the service's own share.
"""

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.passage import Passage

QUESTION = "What is the birthplace of the director of Amber Falcon?"
PASSAGES = (
    Passage("film", "Amber Falcon", "Amber Falcon was directed by Jon Reed."),
    Passage("person", "Jon Reed", "Jon Reed was born in Port Ellis."),
    Passage("other", "Blue Harbor", "Blue Harbor was directed by Mia Stone."),
)


async def measure(
    call: Callable[[int], Awaitable[object]], calls: int, concurrency: int, server: psutil.Process
) -> dict[str, float]:
    """Measure the server's time and the latency, in milliseconds, of ``calls`` calls in waves of ``concurrency``."""
    latencies: list[float] = []

    async def timed(number: int) -> None:
        started = time.perf_counter()
        await call(number)
        latencies.append(1e3 * (time.perf_counter() - started))

    # One wave beforehand, not counted: it opens the connection and fills caches.
    await asyncio.gather(*(timed(number) for number in range(concurrency)))
    latencies.clear()
    before, started = server.cpu_times(), time.perf_counter()
    for first in range(0, calls, concurrency):
        await asyncio.gather(*(timed(number) for number in range(first, first + concurrency)))
    seconds, after = time.perf_counter() - started, server.cpu_times()
    done = len(latencies)
    latencies.sort()
    return {
        "cpu_ms": 1e3 * (after.user + after.system - before.user - before.system) / done,
        "calls_per_second": done / seconds,
        "p50_ms": latencies[done // 2],
        "p95_ms": latencies[int(done * 0.95)],
    }


async def run(calls: int, concurrency: int) -> dict[str, dict[str, float]]:
    """Measure all kinds of calls, one after the other, against one new server."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        assignments = ("listen.http_port=0", "listen.grpc_port=0", f"ready_file={ready}")
        arguments = [part for assignment in assignments for part in ("--set", assignment)]
        process = subprocess.Popen([sys.executable, "-m", "services.generator", *arguments], stderr=subprocess.DEVNULL)
        try:
            while not ready.exists():
                await asyncio.sleep(0.05)
            async with GeneratorClient(json.loads(ready.read_text())["grpc"]) as client:
                kinds: dict[str, Callable[[int], Awaitable[object]]] = {
                    "ListMethods (empty)": lambda _: client.list_methods(),
                    "AnswerFromContext": lambda _: client.answer_from_context(QUESTION, PASSAGES),
                    "Judge, by span": lambda _: client.judge(QUESTION, "Port Ellis", ["Port Ellis"]),
                    "Judge, asked": lambda n: client.judge(QUESTION, f"Port {n}", ["Port Ellis"]),
                }
                server = psutil.Process(process.pid)
                return {name: await measure(call, calls, concurrency, server) for name, call in kinds.items()}
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.calls, arguments.concurrency))
    table = Table("call", "server cpu ms", "calls/s", "p50 ms", "p95 ms", title=f"{arguments.concurrency} at once")
    for name, row in results.items():
        figures = (row["cpu_ms"], row["calls_per_second"], row["p50_ms"], row["p95_ms"])
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    Console().print(table)
    if arguments.output is not None:
        facts = {"machine": platform.processor() or platform.machine(), "concurrency": arguments.concurrency}
        arguments.output.write_text(json.dumps({**facts, "calls": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
