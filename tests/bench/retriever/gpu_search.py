"""Measures exact search on a GPU: scans of several batch sizes, and concurrent clients of the retriever's batcher.

    python -m tests.bench.retriever.gpu_search --rows 21e6 --output result.json

Vectors are windows of one random array, so the host needs little memory for many of them. Clients send their next query
as soon as they have an answer; the times include queue and batcher, but neither the encoder nor HTTP. Bytes are those
of the vectors, once per scan.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from services.retriever.indexes.vectors.base import ExactSettings, Vectors
from services.retriever.indexes.vectors.gpu_exact import GpuExactIndex
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankedRows, RankingScope
from services.retriever.serving.query_batcher import BatchingSettings, QueryBatcher
from tests.bench.tables import markdown_table

BATCH_COLUMNS = ("queries in a batch", "milliseconds", "queries/s", "TB/s")
CLIENT_COLUMNS = ("clients", "queries/s", "p50 ms", "p95 ms", "p99 ms")
DIMENSIONS, TOP_K = 768, 10
_WINDOW_STEP = 4
Row = Mapping[str, object]


def make_vectors(rows: int, dimensions: int) -> Vectors:
    """Different vectors of about length one: windows of a random array, each four numbers further on."""
    numbers = np.random.default_rng(0).standard_normal(rows * _WINDOW_STEP + dimensions, dtype=np.float32)
    numbers /= np.sqrt(dimensions)
    return np.lib.stride_tricks.sliding_window_view(numbers, dimensions)[::_WINDOW_STEP][:rows]


def measure_batches(index: GpuExactIndex, sizes: Sequence[int], repeats: int) -> list[Row]:
    """Median time of searches of each size."""
    rows = []
    for size in sizes:
        queries = make_queries(size, index.dimensions)
        index.search(queries, TOP_K, None)  # compiles the kernel of this size
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            index.search(queries, TOP_K, None)
            taken.append(time.perf_counter() - started)
        seconds = statistics.median(taken)
        scans = -(-size // 64)
        moved = scans * len(index) * index.dimensions * 2
        rows.append(
            {
                "queries in a batch": size, "milliseconds": seconds * 1e3, "queries/s": size / seconds,
                "TB/s": moved / seconds / 1e12,
            }
        )  # fmt: skip
    return rows


def measure_clients(index: GpuExactIndex, clients: Sequence[int], seconds: float, max_batch: int = 64) -> list[Row]:
    """Answers per second and latency with this many clients, each of which waits for its answer."""
    queries = {str(number): vector for number, vector in enumerate(make_queries(1024, index.dimensions))}

    def rank(texts: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        return index.search(np.stack([queries[text] for text in texts]), top_k, None)

    scope = RankingScope("generation", "", "dense", TOP_K, ())
    batcher = QueryBatcher(BatchingSettings(max_batch=max_batch), RetrieverMetrics(CollectorRegistry()))
    try:
        return [asyncio.run(_run_clients(batcher, scope, rank, list(queries), count, seconds)) for count in clients]
    finally:
        batcher.close()


async def _run_clients(batcher, scope, rank, texts: Sequence[str], count: int, seconds: float) -> Row:
    taken: list[float] = []
    started = time.perf_counter()

    async def ask(number: int) -> None:
        while time.perf_counter() - started < seconds:
            number = (number + 1) % len(texts)
            asked = time.perf_counter()
            await batcher.submit([texts[number]], scope, rank, None)
            taken.append(time.perf_counter() - asked)

    await asyncio.gather(*(ask(number * 7) for number in range(count)))
    p50, p95, p99 = np.percentile(taken, [50, 95, 99]) * 1e3
    return {
        "clients": count, "queries/s": len(taken) / (time.perf_counter() - started), "p50 ms": float(p50),
        "p95 ms": float(p95), "p99 ms": float(p99),
    }  # fmt: skip


def make_queries(count: int, dimensions: int) -> Vectors:
    queries = np.random.default_rng(count).standard_normal((count, dimensions), dtype=np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="as the retriever's setting exact.device")
    parser.add_argument("--rows", type=float, default=21e6)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--seconds", type=float, default=3.0, help="per number of clients")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    settings = ExactSettings(device=arguments.device)
    index = GpuExactIndex(make_vectors(int(arguments.rows), arguments.dimensions), settings)
    title = f"{len(index):,} x {index.dimensions} in {settings.dtype}, top {TOP_K}, torch {torch.__version__}"
    print(f"loaded in {time.perf_counter() - started:.1f} s")  # noqa: T201 - a benchmark's output
    batches = measure_batches(index, (1, 8, 32, 64, 128), 10)
    markdown_table(title, BATCH_COLUMNS, batches)
    clients = measure_clients(index, (1, 32, 64, 128), arguments.seconds)
    markdown_table("Clients", CLIENT_COLUMNS, clients)
    if arguments.output:
        arguments.output.write_text(json.dumps({"batches": batches, "clients": clients}, indent=1))


if __name__ == "__main__":
    main()
