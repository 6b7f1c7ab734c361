"""Runs a real Prometheus on loopback, from Debian's package."""

import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

START_SECONDS = 90  # until the server is ready and has scraped what the test waits for, on a busy machine


def tool(name: str) -> str:
    """Return the path of a program of Debian's package prometheus; without it, warn and skip the test."""
    path = shutil.which(name)
    if path is None:
        warnings.warn(
            pytest.PytestWarning(f"{name} not found, its tests are skipped: apt-get install prometheus"), stacklevel=2
        )
        pytest.skip(f"{name} not found; to run this test: apt-get install prometheus")
    return path


class LoopbackPrometheus:
    """A client of the running Prometheus."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def values(self, expr: str) -> list[float]:
        """Return the newest values of an expression; a scalar is a list of one."""
        answer = self.client.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", answer
        found = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return [float(found[1])]
        return [float(sample["value"][1]) for sample in found]

    def is_ready(self) -> bool:
        try:
            return self.client.get("/-/ready").is_success
        except httpx.TransportError:
            return False


@contextmanager
def running_prometheus(
    folder: Path, config: Mapping[str, Any], comes_up: Callable[[LoopbackPrometheus], bool], samples: str = ""
) -> Iterator[LoopbackPrometheus]:
    """Start Prometheus with ``samples`` (OpenMetrics) backfilled; wait for ``comes_up``; stop when the block ends."""
    program, promtool = tool("prometheus"), tool("promtool")
    if samples:
        (folder / "samples.om").write_text(samples)
        backfill = [promtool, "tsdb", "create-blocks-from", "openmetrics", folder / "samples.om", folder / "data"]
        subprocess.run(backfill, check=True, capture_output=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    address = _free_address()
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--storage.tsdb.retention.time=30d", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=30) as client:
            prometheus = LoopbackPrometheus(client)
            end = time.monotonic() + START_SECONDS
            while not (prometheus.is_ready() and comes_up(prometheus)):
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
            yield prometheus
    finally:
        process.terminate()
        process.wait(timeout=30)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
