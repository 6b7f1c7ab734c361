"""Does every panel show something? A real Prometheus answers every query from backfilled series of every metric."""

import math
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.cluster.static.monitoring_registry import RULES, panel_queries, recorded, rules, tool
from tests.cluster.static.monitoring_samples import openmetrics

START_SECONDS = 60
QUERIES = panel_queries()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus on loopback with three hours of samples and our rules; it scrapes nothing."""
    folder = tmp_path_factory.mktemp("prometheus")
    program, promtool = tool("prometheus"), tool("promtool")
    samples = folder / "samples.om"
    samples.write_text(openmetrics(time.time(), hours=3, step=60))
    backfill = [promtool, "tsdb", "create-blocks-from", "openmetrics", samples, folder / "data"]
    subprocess.run(backfill, check=True, capture_output=True)
    config = {"global": {"evaluation_interval": "1s"}, "rule_files": [str(path) for path in RULES]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--storage.tsdb.retention.time=30d", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=30) as client:
            wait_until_rules_ran(client, process, folder / "log")
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_rules_ran(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            is_ready = client.get("/-/ready").is_success
            if is_ready and all(
                values(client, name) for name in recorded() if not name.startswith("searchrl:retriever")
            ):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"no recorded series after {START_SECONDS} s: {log.read_text()}")


def values(client: httpx.Client, expr: str) -> list[float]:
    """Newest values of an expression; a scalar is one."""
    answer = client.get("/api/v1/query", params={"query": expr}).json()
    assert answer["status"] == "success", answer
    found = answer["data"]["result"]
    if answer["data"]["resultType"] == "scalar":
        return [float(found[1])]
    return [float(sample["value"][1]) for sample in found]


@pytest.mark.parametrize(("where", "expr"), QUERIES, ids=[where for where, _ in QUERIES])
def test_the_query_returns_data(prometheus: httpx.Client, where: str, expr: str) -> None:
    found = values(prometheus, expr)
    assert found, f"no data: {expr}"
    assert not all(math.isnan(value) for value in found), f"only NaN: {expr}"


@pytest.mark.parametrize("name", sorted(recorded()))
def test_the_recording_rule_has_values(prometheus: httpx.Client, name: str) -> None:
    assert any(not math.isnan(value) for value in values(prometheus, name))


def test_prometheus_has_loaded_and_evaluated_every_rule(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert states == {rule.get("alert") or rule["record"]: "ok" for rule in rules()}
