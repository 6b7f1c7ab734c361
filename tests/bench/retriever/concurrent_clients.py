"""Measures the queries per second of concurrent clients: one search per request against shared batches.

    OMP_NUM_THREADS=2 python -m tests.bench.retriever.concurrent_clients --rows 200000 --output result.json

Every client sends one query over a keep-alive HTTP connection to a server process, waits for its answer and sends the
next. The baseline is a plain retrieval server: each request searches by itself in a pool of 40 threads, with FAISS at
its default settings. Query vectors are drawn beforehand, so the time of an encoder is in none of the results.
"""

import argparse
import json
from pathlib import Path

import faiss
import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.http_clients import load, machine, post, server
from tests.bench.retriever.drawn_server import QUERIES, TOP_K

VARIANTS = {"plain": "one search per request", "faiss": "batched, FAISS flat", "exact": "batched, exact index"}


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Measure all variants at all numbers of clients."""
    results: list[dict[str, object]] = []
    requests = [post("/search", {"query": number}) for number in range(QUERIES)]
    size = (f"rows={arguments.rows}", f"dimensions={arguments.dimensions}")
    for variant, name in VARIANTS.items():
        with server("tests.bench.retriever.drawn_server", f"variant={variant}", *size) as address:
            for count in arguments.clients:
                made = load(address, lambda number: requests[number % QUERIES], count, arguments.seconds)
                results.append({"variant": name, **uvloop.run(made)})
    return results


def main() -> None:
    """Measure, print a table, and write JSON with ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments)
    columns = ("variant", "clients", "per_second", "p50_ms", "p95_ms")
    table = Table(*columns, title=machine())
    for row in results:
        table.add_row(*(str(row[name]) for name in columns))
    Console().print(table)
    if arguments.output:
        about = {"rows": arguments.rows, "dimensions": arguments.dimensions, "top_k": TOP_K,
                 "machine": machine(), "faiss": faiss.__version__}  # fmt: skip
        arguments.output.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
