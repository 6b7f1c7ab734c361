"""Runs on a server with MLflow's REST interface: parameters, numbers, artifacts, resume, outages and keys."""

import asyncio
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from searchrl.errors import ConfigurationError
from services.trainer.settings import load_run_config
from services.trainer.trackers.base import (
    SAMPLE_COLUMNS,
    RunEnd,
    Sample,
    TrackedStep,
    TrackerContext,
    without_secrets,
)
from services.trainer.trackers.mlflow import MlflowSettings, MlflowTracker
from services.trainer.trackers.wandb import WandbSettings, WandbTracker
from tests.fakes.mlflow_server import FakeMlflow, serve_mlflow
from tests.fakes.small_run import SmallRun

SAMPLE = Sample("Who?", ("<search>é</search>", "<finish>"), ("A [a]",), "Oslo", None, "InfraFailure: down")
CONFIG = {
    "seed": 3,
    "services": {"key_file": "/keys/client"},
    "many": {str(number): "x" * 900 for number in range(150)},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMlflow]:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_mlflow() as fake:
        yield fake


def tracker(server: FakeMlflow, folder: Path, pauses: list[float] | None = None, **settings: Any) -> MlflowTracker:
    chosen = MlflowSettings(address=server.url, **settings)
    return MlflowTracker(chosen, TrackerContext("first", folder, CONFIG), (pauses if pauses is not None else []).append)


def step(number: int, *samples: Sample, **line: Any) -> TrackedStep:
    return TrackedStep(number, {"step": number, "reward": number / 10, **line}, 100.0 + number, samples)


def test_a_run_has_its_settings_its_numbers_and_its_trajectories(server: FakeMlflow, tmp_path: Path) -> None:
    found = tracker(server, tmp_path)
    found.open(0)
    found.record(step(1, SAMPLE, loss=math.nan, grad_norm=-math.inf, collapse_warning=False, fingerprint="abc"))
    found.record(step(2))
    found.close(RunEnd.FINISHED)
    (run,) = server.runs.values()
    assert (run["run_name"], run["status"], server.experiments) == ("first", "FINISHED", ["searchrl"])
    assert server.params["seed"] == "3" and server.params["services.key_file"] == "/keys/client"
    assert len(server.params) == 152 and len(server.params["many.149"]) == 500
    assert server.curve("reward") == [(1, 0.1), (2, 0.2)]
    assert server.curve("loss") == [(1, "NaN")] and server.curve("grad_norm") == [(1, "-Infinity")]
    assert server.curve("collapse_warning") == [(1, 0.0)] and not server.curve("fingerprint")
    row = [1, "Who?", "<search>é</search>\n\n<finish>", "A [a]", "Oslo", None, "InfraFailure: down"]
    table = {"columns": list(SAMPLE_COLUMNS), "data": [row]}
    assert server.artifacts == {"0/run0/artifacts/samples/step_000001.json": table}


def test_a_resumed_run_continues_its_run_and_repeats_no_step(server: FakeMlflow, tmp_path: Path) -> None:
    killed = tracker(server, tmp_path)
    killed.open(0)
    for number in (1, 2, 3):
        killed.record(step(number))
    # killed: never closed; the checkpoint was of step 1
    resumed = tracker(server, tmp_path, experiment="searchrl")
    resumed.open(1)
    for number in (1, 1, 2, 3, 4):  # the version of the checkpoint is validated first; repeated, it keeps its value
        resumed.record(TrackedStep(number, {"validation_reward": number / 2}, 200.0, part="validation"))
        resumed.record(step(number))
    assert list(server.runs) == ["run0"] and server.runs["run0"]["status"] == "RUNNING"
    resumed.close(RunEnd.FAILED)
    assert server.runs["run0"]["status"] == "FAILED"
    assert [number for number, _ in server.curve("reward")] == [1, 2, 3, 4]
    assert server.curve("validation_reward") == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    other = tracker(server, tmp_path / "other")
    other.open(0)
    assert list(server.runs) == ["run0", "run1"] and server.experiments == ["searchrl"]


def test_a_call_is_repeated_while_the_server_restarts_and_then_fails_with_a_sentence(
    server: FakeMlflow, tmp_path: Path
) -> None:
    pauses: list[float] = []
    found = tracker(server, tmp_path, pauses)
    found.open(0)
    server.answers = [503, 429]
    found.record(step(1))
    assert server.curve("reward") == [(1, 0.1)] and pauses == [1.0, 4.0]
    server.answers = [503, 503, 503]
    with pytest.raises(httpx.HTTPStatusError, match=r"/runs/log-batch answered 503"):
        found.record(step(2))
    server.answers = [403]  # not repeated: a wrong key stays wrong
    with pytest.raises(httpx.HTTPStatusError, match="answered 403"):
        found.record(step(3))
    server.answers = [302]  # to a login page
    with pytest.raises(httpx.HTTPStatusError, match="answered 302"):
        found.record(step(4))
    found.record(step(5))
    assert [number for number, _ in server.curve("reward")] == [1, 5]


def test_a_run_is_created_once_even_if_the_server_fails_meanwhile(server: FakeMlflow, tmp_path: Path) -> None:
    found = tracker(server, tmp_path)
    server.answers = [200, 200, 503]  # of the experiment twice, and of the run
    with pytest.raises(httpx.HTTPStatusError):
        found.open(0)
    assert server.calls.count("/api/2.0/mlflow/runs/create") == 1
    found.open(0)
    server.answers = [500]
    with pytest.raises(httpx.HTTPStatusError):
        found.open(0)  # as after a failure of a step
    found.open(0)
    assert list(server.runs) == ["run0"]


@pytest.mark.parametrize(
    ("key", "sent"), [("secret-token", "Bearer secret-token"), ("ann:secret-word", "Basic YW5uOnNlY3JldC13b3Jk")]
)
def test_a_key_of_a_file_is_sent_and_stands_in_no_file_and_no_log(
    server: FakeMlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, sent: str
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{key}\n")
    folder = tmp_path / "run"
    with caplog.at_level(logging.DEBUG):
        found = tracker(server, folder, key_file=file)
        found.open(0)
        server.answers, server.refusal = [403], f"unknown key {key}"
        with pytest.raises(httpx.HTTPStatusError) as refused:
            found.record(step(1, SAMPLE))
    assert set(server.keys) == {sent} and "unknown key ***" in str(refused.value)
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert texts and not [text for text in [*texts, *caplog.messages, str(refused.value)] if "secret" in text]


def test_address_and_key_may_come_from_mlflows_own_variables(
    server: FakeMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-word")
    MlflowTracker(MlflowSettings(), TrackerContext("first", tmp_path, {})).open(0)
    assert set(server.keys) == {"Basic YW5uOnNlY3JldC13b3Jk"} and list(server.runs) == ["run0"]
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret-token")
    for sent in ("Basic YW5uOnNlY3JldC13b3Jk", "Bearer secret-token"):  # MLflow's own client prefers user and password
        MlflowTracker(MlflowSettings(), TrackerContext("first", tmp_path, {})).open(0)
        assert server.keys[-1] == sent
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)


def test_artifacts_that_go_past_the_server_are_left_out_with_a_sentence(
    server: FakeMlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.store = "s3://bucket/"
    found = tracker(server, tmp_path)
    found.open(0)
    found.record(step(1, SAMPLE))
    assert server.curve("reward") == [(1, 0.1)] and not server.artifacts
    assert "no sampled trajectories: the server keeps artifacts at s3://bucket/" in caplog.text


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "logging.mlflow.address has to be the http address of a server, such as http://mlflow:5000, and is ''"),
        ("file:///mlruns", "and is 'file:///mlruns'"),
    ],
)
def test_an_address_that_is_no_server_is_refused_at_the_start(
    address: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigurationError) as refused:
        MlflowTracker(MlflowSettings(address=address), TrackerContext("first", tmp_path, {}))
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        *("https://ann:secret@mlflow", "ftp://ann:secret@mlflow", "ann:secret@mlflow:5000", "http:/ann:secret@mlflow"),
        *("http://secret@mlflow", "http://ann:se/cret@mlflow", "http://mlflow?token=secret", "http://mlflow/#secret"),
    ],
)
def test_an_address_with_a_secret_is_refused_without_showing_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["model=m", "questions=q.jsonl", "output=run", "reward.kind=exact_match"]
    for name in ("mlflow", "wandb"):  # whether the run names the tracker or not: run.yaml would hold the address
        with pytest.raises(ConfigurationError, match=f"logging.{name}.address holds a user, a key or") as refused:
            load_run_config(None, [*run, f"logging.{name}.address={address}"])
        assert "cret" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    context = TrackerContext("first", tmp_path, {})
    for build in (lambda: MlflowTracker(MlflowSettings(), context), lambda: WandbTracker(WandbSettings(), context)):
        with pytest.raises(ConfigurationError, match="holds a user, a key or parameters") as refused:
            build()
        assert "cret" not in str(refused.value)


def test_what_a_message_shows_of_an_address_has_no_secret() -> None:
    shown = {
        "s3://bucket/runs": "s3://bucket/runs",
        "http://ann:se@cret@store:9000/a?token=secret": "http://store:9000/a",
        "ann:secret@store": "store",
    }
    assert [without_secrets(address) for address in shown] == list(shown.values())


async def test_a_run_that_sigterm_stops_is_killed_there(server: FakeMlflow, tmp_path: Path) -> None:
    logging_to = {"trackers": ["mlflow"], "trajectories_every": 0, "mlflow": {"address": server.url}}
    run = SmallRun(tmp_path, logging=logging_to, rollouts__groups_per_step=1, rollouts__group_size=2)
    running = asyncio.create_task(run.train())
    while not server.curve("reward"):
        await asyncio.sleep(0.01)
    run.service.stop_if(True)  # as SIGTERM does
    await running
    assert [found["status"] for found in server.runs.values()] == ["KILLED"]


def test_a_key_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for name, reason in (("missing", "No such file"), ("empty", "is empty")):
        settings = MlflowSettings(address="http://127.0.0.1:1", key_file=tmp_path / name)
        with pytest.raises(ConfigurationError, match=f"logging.mlflow.key_file: .*{reason}"):
            MlflowTracker(settings, TrackerContext("first", tmp_path, {}))
