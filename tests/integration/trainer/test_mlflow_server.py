"""A run on a real MLflow server, read back over its REST interface; needs the command ``mlflow``."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.trainer.trackers.base import RunEnd, Sample, TrackedStep, TrackerContext
from services.trainer.trackers.mlflow import MlflowSettings, MlflowTracker

START_SECONDS = 120.0  # a server that migrates its database, on a busy machine


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with an empty database, which keeps artifacts itself."""
    command = shutil.which("mlflow")
    if command is None:
        pytest.skip("there is no command mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += [
        "--backend-store-uri",
        f"sqlite:///{folder}/runs.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([command, "server", *arguments], stdout=log, stderr=log, cwd=folder)
    found = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    try:
        while not _answers(found):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield found
    finally:
        server.terminate()
        server.wait(30)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def step(number: int, value: float) -> TrackedStep:
    sample = Sample("Who?", ("<search>é</search>",), ("A [a]",), "Oslo", None, "InfraFailure: down")
    return TrackedStep(number, {"step": number, "reward": value, "loss": float("nan")}, 100.0 + number, (sample,))


@pytest.mark.slow
def test_a_real_server_shows_every_step_of_a_resumed_run_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def track(after_step: int, numbers: tuple[int, ...], end: RunEnd) -> None:
        config = {"seed": 3, "many": {str(number): "x" * 900 for number in range(150)}}
        tracker = MlflowTracker(MlflowSettings(address=address), TrackerContext("first", tmp_path, config))
        tracker.open(after_step)
        for number in numbers:
            tracker.record(step(number, number / 10))
        tracker.close(end)

    def get(path: str, /, **params: str) -> dict[str, Any]:
        return httpx.get(f"{address}{path}", params=params, trust_env=False).raise_for_status().json()

    track(0, (1, 2), RunEnd.STOPPED)
    track(1, (2, 3), RunEnd.FINISHED)
    run_id = json.loads((tmp_path / "trackers" / "mlflow.json").read_text())["run"]
    run = get("/api/2.0/mlflow/runs/get", run_id=run_id)["run"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("first", "FINISHED")
    assert len(run["data"]["params"]) == 151
    history = get("/api/2.0/mlflow/metrics/get-history", run_id=run_id, metric_key="reward")["metrics"]
    assert [(entry["step"], entry["value"]) for entry in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    files = get("/api/2.0/mlflow/artifacts/list", run_id=run_id, path="samples")["files"]
    assert [file["path"] for file in files] == [f"samples/step_{number:06d}.json" for number in (1, 2, 3)]
    (table,) = get("/get-artifact", run_uuid=run_id, path=files[0]["path"])["data"]
    assert table[1:3] == ["Who?", "<search>é</search>"]
