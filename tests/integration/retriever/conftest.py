"""Fixtures that start real processes: the retriever, on ports that the system chooses, and Redis."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).parents[3]
SAMPLES = REPOSITORY / "tests" / "data"
SECONDS = 480  # of any wait: a retriever with a model imports torch, and a build encodes, slowly on a busy machine


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of the retriever, and with one thread for numeric libraries."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETRIEVER_")}
    return kept | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | variables


def run_build(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the build command until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "services.retriever.build_index", *arguments],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


@dataclass
class RetrieverProcess:
    """A running ``python -m services.retriever``."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    log: Path

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)


@contextmanager
def _starter(folder: Path) -> Iterator[Callable[..., RetrieverProcess]]:
    """Yield a function that starts retrievers with logs and ready files in ``folder``; all are killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def start(index_dir: Path, module: str = "services.retriever", **variables: str) -> RetrieverProcess:
        ready_file = folder / f"ready-{len(running)}.json"
        log = folder / f"retriever-{len(running)}.log"
        settings = {
            "RETRIEVER_INDEX_DIR": str(index_dir),
            "RETRIEVER_READY_FILE": str(ready_file),
            "RETRIEVER_LISTEN__HTTP_PORT": "0",
            "RETRIEVER_LISTEN__GRPC_PORT": "0",
            "RETRIEVER_LISTEN__DRAIN_SECONDS": "5",
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=REPOSITORY, env=environment(**settings | variables), stderr=output, stdout=output, text=True,
            )  # fmt: skip
        running.append(process)
        wait_until(lambda: ready_file.exists() or process.poll() is not None, "a ready file", log)
        assert process.poll() is None, log.read_text()
        ready = json.loads(ready_file.read_text())
        return RetrieverProcess(process, f"http://{ready['http']}", ready["grpc"], log)

    try:
        yield start
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def start_retriever(tmp_path: Path) -> Iterator[Callable[..., RetrieverProcess]]:
    """Start retrievers; each is stopped at the end of the test."""
    with _starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def sample_retriever(tmp_path_factory: pytest.TempPathFactory, bm25_index: Path) -> Iterator[RetrieverProcess]:
    """One retriever over the SQuAD sample, for tests that only search."""
    with _starter(tmp_path_factory.mktemp("sample")) as start:
        yield start(bm25_index)


def wait_until(condition: Callable[[], bool], what: str, log: Path | None = None) -> None:
    """Poll until ``condition()`` holds, for effects of another process; on a timeout show its log."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"timed out waiting for {what}: {log.read_text() if log else ''}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def bm25_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BM25 index of the SQuAD sample, built by the command."""
    folder = tmp_path_factory.mktemp("bm25")
    built = run_build("--corpus", str(SAMPLES / "squad_en" / "corpus.jsonl.gz"), "--output", str(folder))
    assert built.returncode == 0, built.stderr
    return folder


@dataclass
class RedisServer:
    """A Redis for one test, reached through a socket file."""

    process: subprocess.Popen[bytes]
    url: str

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Stop answering without closing connections."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], RedisServer]]:
    """Start Redis servers, always on the same socket file, so that a later one replaces a dead one."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("REDIS TESTS NOT RUN: there is no redis-server on this machine; install the package redis-server")
    socket = tmp_path_factory.mktemp("redis") / "redis.sock"
    running: list[RedisServer] = []

    def start() -> RedisServer:
        process = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(socket.parent)],
            stdout=subprocess.DEVNULL,
        )
        running.append(RedisServer(process, f"unix://{socket}"))
        wait_until(lambda: _answers(socket), "Redis")
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.resume()
            server.kill()


def _answers(socket: Path) -> bool:
    import redis

    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client
