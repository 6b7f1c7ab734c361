"""Runs of Weights & Biases: what the library is asked for, and files of its offline mode, read back."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from searchrl.errors import ConfigurationError
from services.trainer.trackers.base import RunEnd, Sample, TrackedStep, TrackerContext
from services.trainer.trackers.tracker_thread import CLOSE_SECONDS
from services.trainer.trackers.wandb import KEY_VARIABLE, WandbSettings, WandbTracker

SAMPLE = Sample("Who?", ("<search>it</search>",), ("A [a]",), "Oslo", 1.0, "scored")
CONFIG = {"seed": 3, "services": {"retriever": "r:1"}}
KEY = "secret" * 8


class FakeWandb(ModuleType):
    """The part of the library that the tracker uses; ``failures`` are raised by the next calls of ``log``."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.runs: list[SimpleNamespace] = []
        self.failures: list[Exception] = []

    def init(self, **arguments: Any) -> SimpleNamespace:
        run = SimpleNamespace(arguments=arguments, environment=dict(os.environ), logged=[], ends=[], axes={})

        def log(values: dict[str, Any], commit: bool) -> None:
            if self.failures:
                raise self.failures.pop()
            run.logged.append((values.pop("step"), values, commit))

        def define_metric(name: str, step_metric: str) -> None:
            run.axes[name] = step_metric

        run.log, run.define_metric, run.finish = log, define_metric, lambda exit_code: run.ends.append(exit_code)
        self.runs.append(run)
        return run

    Settings = staticmethod(lambda **settings: settings)
    Table = staticmethod(lambda columns, data: (columns, data))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return fake


def tracker(folder: Path, **settings: Any) -> WandbTracker:
    return WandbTracker(WandbSettings(**{"mode": "offline", **settings}), TrackerContext("first", folder, CONFIG))


def step(number: int, *samples: Sample) -> TrackedStep:
    return TrackedStep(number, {"step": number, "reward": number / 10, "fingerprint": "abc"}, 100.0 + number, samples)


def test_a_run_is_named_configured_and_keeps_the_library_out_of_the_process(wandb: FakeWandb, tmp_path: Path) -> None:
    found = tracker(tmp_path, project="p", entity="team", address="http://own")
    found.open(0)
    found.record(step(1, SAMPLE))
    found.record(step(2))
    found.close(RunEnd.STOPPED)
    (run,) = wandb.runs
    chosen = run.arguments
    assert (chosen["project"], chosen["entity"], chosen["name"], chosen["mode"]) == ("p", "team", "first", "offline")
    assert chosen["config"] == CONFIG and chosen["resume"] == "allow" and chosen["settings"]["base_url"] == "http://own"
    assert chosen["settings"]["console"] == "off" and chosen["dir"].startswith(str(tmp_path))
    columns = ["step", "question", "turns", "documents", "answer", "reward", "outcome"]
    table = (columns, [[1, "Who?", "<search>it</search>", "A [a]", "Oslo", 1.0, "scored"]])
    assert run.logged == [(1, {"reward": 0.1, "samples": table}, True), (2, {"reward": 0.2}, True)]
    assert chosen["settings"]["finish_timeout"] < CLOSE_SECONDS  # also limits how long the process takes to exit
    assert run.ends == [0] and run.axes == {"*": "step"}


def test_a_resumed_run_continues_its_run_and_repeats_no_step(wandb: FakeWandb, tmp_path: Path) -> None:
    killed = tracker(tmp_path)
    killed.open(0)
    for number in (1, 2, 3):
        killed.record(step(number))
    resumed = tracker(tmp_path)
    resumed.open(1)  # the checkpoint was of step 1
    for number in (2, 3, 4):
        resumed.record(step(number))
    resumed.record(TrackedStep(3, {"validation_reward": 0.5}, 200.0, part="validation"))  # it ran beside step 4
    resumed.close(RunEnd.FAILED)
    first, second = wandb.runs
    assert first.arguments["id"] == second.arguments["id"] and len(first.arguments["id"]) == 8
    assert [number for run in (first, second) for number, *_ in run.logged] == [1, 2, 3, 4, 3]
    assert second.ends == [1]
    tracker(tmp_path / "other").open(0)
    assert wandb.runs[2].arguments["id"] != first.arguments["id"]


def test_after_a_failure_the_run_is_continued_and_only_the_failed_step_is_missing(
    wandb: FakeWandb, tmp_path: Path
) -> None:
    found = tracker(tmp_path)
    found.open(0)
    wandb.failures = [RuntimeError("the service has ended")]
    with pytest.raises(RuntimeError):
        found.record(step(1))
    found.open(1)
    found.record(step(2))
    assert [run.arguments["id"] for run in wandb.runs] == [wandb.runs[0].arguments["id"]] * 2
    assert wandb.runs[0].ends == [1] and wandb.runs[1].logged[0][0] == 2


def test_a_key_of_a_file_is_set_for_the_library_alone_and_kept_nowhere(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    folder = tmp_path / "run"
    found = tracker(folder, mode="online", key_file=file)
    found.open(0)
    found.record(step(1, SAMPLE))
    assert wandb.runs[0].arguments["settings"].pop("api_key") == KEY
    monkeypatch.setenv(KEY_VARIABLE, "other")
    tracker(folder, mode="online", key_file=file).open(1)
    assert wandb.runs[1].arguments["settings"].pop("api_key") == KEY and os.environ[KEY_VARIABLE] == "other"
    assert KEY not in wandb.runs[0].environment.values()
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert texts and not [text for text in [*texts, *caplog.messages] if "secret" in text]
    assert "secret" not in json.dumps({name: str(value) for name, value in wandb.runs[0].arguments.items()})


def test_a_missing_library_or_key_is_refused_at_the_start(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=rf"there is no key: set {KEY_VARIABLE} or logging.wandb.key_file"):
        tracker(tmp_path, mode="online")
    monkeypatch.setattr("services.trainer.trackers.wandb.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"wandb is not installed: pip install 'searchrl\[wandb\]'"):
        tracker(tmp_path)


def offline_records(folder: Path) -> Iterator[Any]:
    """The records of every file of the offline mode, from which ``wandb sync`` sends a run."""
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")  # which has no types
    for path in sorted(folder.rglob("*.wandb")):
        for data in log_records(path.read_bytes()):
            record = messages.Record()
            record.ParseFromString(data)
            yield record


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in the log format of LevelDB, after a header of 7 bytes."""
    assert content.startswith(b":W&B")
    position, record = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # no part starts in the last bytes of a block
            position += 32768 - position % 32768
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # complete, or the last part; 2 and 3 are the first and those in between
            yield record
            record = b""


def test_offline_files_hold_settings_numbers_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in (("WANDB_ERROR_REPORTING", "false"), ("WANDB_CACHE_DIR", str(tmp_path / "cache"))):
        monkeypatch.setenv(name, value)  # no call out, and no file outside
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (tmp_path / "key").write_text(KEY)
    for part in ((1, 2), (2, 3)):  # killed after step 2 with a checkpoint of step 1
        found = tracker(tmp_path / "run", key_file=tmp_path / "key")
        found.open(part[0] - 1)
        for number in part:
            found.record(step(number, SAMPLE))
        found.record(TrackedStep(part[0], {"validation_reward": 0.5}, 200.0, part="validation"))
        found.close(RunEnd.FINISHED)
    folder = tmp_path / "run" / "trackers"
    records = list(offline_records(folder))
    runs = [record.run for record in records if record.HasField("run")]
    assert {run.run_id for run in runs} == {json.loads((folder / "wandb.json").read_text())["run"]}
    assert {update.key: json.loads(update.value_json) for update in runs[0].config.update if update.key == "seed"}
    lines = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(line["step"], line["reward"]) for line in lines if "reward" in line] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert [(line["step"], line["validation_reward"]) for line in lines if "reward" not in line] == [(1, 0.5), (2, 0.5)]
    tables = [json.loads(path.read_text()) for path in folder.rglob("*.table.json")]
    assert {table["data"][0][1] for table in tables} == {"Who?"} and len(tables) == 3
    assert not [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
