"""Measures the cost of keep-alive HTTP requests: a cached search and a gateway call that do little else.

    python -m tests.bench.transport.kept_alive --tree before=../other-checkout --output result.json

Real processes on loopback: the retriever with a small index and always the same query, and the generator as the gateway
of a server that answers immediately. With ``--tree`` the services of other checkouts are measured in the same run,
alternating with this one.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.http_clients import code_of, load, machine, post, server

CORPUS = Path(__file__).resolve().parents[2] / "data" / "squad_en" / "corpus.jsonl.gz"
REPLY = json.dumps(
    {
        "id": "1", "object": "chat.completion", "created": 0, "model": "bench",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Done."}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()  # fmt: skip
CHAT = {"model": "bench", "messages": [{"role": "user", "content": "Say something."}]}


class FixedReply(asyncio.Protocol):
    """An LLM server that answers immediately; its small requests arrive in one piece, so it does not parse them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.rstrip().endswith(b"}") or data.startswith(b"GET"):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(REPLY)
            self.transport.write(head + REPLY)


async def serve_fixed_reply() -> None:
    listening = await asyncio.get_running_loop().create_server(FixedReply, "127.0.0.1", 0)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await listening.serve_forever()


@contextmanager
def upstream() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-m", __spec__.name, "--upstream"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def measure(name: str, tree: Path, index: Path, clients: list[int], seconds: float) -> list[dict[str, object]]:
    """Measure both services of one checkout."""
    rows: list[dict[str, object]] = []
    search = post("/retrieve", {"queries": ["Who built it?"], "topk": 3})
    with server("services.retriever", f"index_dir={index}", tree=tree) as address:
        for count in clients:
            measured = uvloop.run(load(address, lambda _: search, count, seconds))
            rows.append({"tree": name, "call": "cached /retrieve", **measured})
    chat = post("/v1/chat/completions", CHAT)
    engine = ["engine.kind=url", "engine.model=bench"]
    with upstream() as url, server("services.generator", *engine, f"engine.base_url={url}", tree=tree) as address:
        for count in clients:
            measured = uvloop.run(load(address, lambda _: chat, count, seconds))
            rows.append({"tree": name, "call": "gateway", **measured})
    return rows


def main() -> None:
    """Measure, print a table, and write JSON with ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=FOLDER", help="another checkout")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        uvloop.run(serve_fixed_reply())
        return
    trees = [tuple(text.split("=", 1)) for text in arguments.tree]
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            for number, (name, tree) in enumerate([*trees, ("this", str(Path.cwd()))]):
                index = Path(folder) / f"index-{number}"
                if not index.exists():
                    command = [sys.executable, "-m", "services.retriever.build_index"]
                    what = ["--corpus", str(CORPUS), "--output", str(index), "--kind", "bm25"]
                    subprocess.run([*command, *what], cwd=tree, env=code_of(tree), check=True, capture_output=True)
                results += measure(name, Path(tree), index, arguments.clients, arguments.seconds)
    columns = ("tree", "call", "clients", "per_second", "p50_ms", "p95_ms")
    table = Table(*columns, title=machine())
    for row in results:
        table.add_row(*(str(row[column]) for column in columns))
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
