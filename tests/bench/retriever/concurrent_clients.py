"""How many queries per second do concurrent clients get? One search per request against shared batches.

    OMP_NUM_THREADS=2 python -m tests.bench.retriever.concurrent_clients --rows 200000 --output result.json

Every client sends one query, waits for its answer and sends the next. The baseline is what a plain retrieval server
does: each request searches by itself in a pool of 40 threads, FAISS with its default settings. Query vectors are drawn
beforehand, so the encoder's time is in neither side; transport is left out on both sides, too.
"""

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from services.retriever.batching.fair_queue import BatchKey
from services.retriever.batching.query_batcher import BatchLimits, QueryBatcher
from services.retriever.indexes.dense_index import DenseRanker, ExactIndex, VectorIndex, Vectors
from services.retriever.indexes.faiss_index import FaissIndex
from services.retriever.metrics import RetrieverMetrics

FAISS_DEFAULT_BLAS_THRESHOLD = 128_000
SERVER_THREADS = 40
TOP_K = 3
Ask = Callable[[int], Awaitable[object]]


class DrawnEncoder:
    """The vector of query "17" is row 17 of vectors drawn beforehand."""

    def __init__(self, vectors_QD: Vectors) -> None:
        self._vectors_QD = vectors_QD

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._vectors_QD[[int(text) for text in texts]]


class NoFilter:
    """No metadata."""

    def rows_with(self, filters: Mapping[str, str]) -> None:
        return None


async def clients(ask: Ask, count: int, seconds: float, queries: int) -> dict[str, float]:
    """Run ``count`` clients for ``seconds``; queries per second and latency in milliseconds."""
    latencies: list[float] = []
    numbers = iter(range(10**9))
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (started := time.perf_counter()) < end:
            await ask(next(numbers) % queries)
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(count)))
    milliseconds = np.array(latencies) * 1000
    return {
        "clients": count,
        "qps": round(len(latencies) / (time.perf_counter() - started), 1),
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 1),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 1),
    }


def per_request(index: faiss.Index, queries_QD: Vectors, pool: ThreadPoolExecutor) -> Ask:
    """Each request searches alone in a thread of the pool."""

    async def ask(number: int) -> object:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, index.search, queries_QD[number : number + 1], TOP_K)

    return ask


def batched(index: VectorIndex, queries_QD: Vectors, batcher: QueryBatcher) -> Ask:
    """Requests meet in the retriever's batcher."""
    ranker = DenseRanker(DrawnEncoder(queries_QD), index, NoFilter())
    key = BatchKey("bench", "dense", TOP_K, ())

    async def ask(number: int) -> object:
        return await batcher.rank([str(number)], key, ranker, None)

    return ask


async def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All variants at all numbers of clients."""
    random = np.random.default_rng(0)
    corpus_ND = random.standard_normal((arguments.rows, arguments.dimensions), dtype=np.float32)
    queries_QD = random.standard_normal((2048, arguments.dimensions), dtype=np.float32)
    flat = faiss.IndexFlatIP(arguments.dimensions)
    flat.add(corpus_ND)
    pool = ThreadPoolExecutor(SERVER_THREADS)
    batcher = QueryBatcher(BatchLimits(), RetrieverMetrics(CollectorRegistry()))
    variants: list[tuple[str, Ask, int]] = [
        ("one search per request", per_request(flat, queries_QD, pool), FAISS_DEFAULT_BLAS_THRESHOLD),
        ("batched, FAISS flat", batched(FaissIndex(flat), queries_QD, batcher), 1),
        ("batched, exact index", batched(ExactIndex(corpus_ND), queries_QD, batcher), 1),
    ]
    results: list[dict[str, object]] = []
    for name, ask, threshold in variants:
        faiss.cvar.distance_compute_blas_threshold = threshold
        await ask(0)
        for count in arguments.clients:
            measured = await clients(ask, count, arguments.seconds, len(queries_QD))
            results.append({"variant": name, **measured})
    batcher.close()
    pool.shutdown()
    return results


def main() -> None:
    """Measure, print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = asyncio.run(measure(arguments))
    table = Table("variant", "clients", "queries/s", "p50 ms", "p95 ms")
    for row in results:
        table.add_row(*(str(row[name]) for name in ("variant", "clients", "qps", "p50_ms", "p95_ms")))
    Console().print(table)
    if arguments.output:
        about = {"rows": arguments.rows, "dimensions": arguments.dimensions, "top_k": TOP_K,
                 "cpus": os.cpu_count(), "machine": platform.processor(), "faiss": faiss.__version__}  # fmt: skip
        arguments.output.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
