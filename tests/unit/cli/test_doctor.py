"""What ``searchrl doctor`` reports about a machine, about the services in a folder, and about a run."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from searchrl.cli.folder_checks import check_folder
from searchrl.cli.main import run
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1.retriever_pb2_grpc import RetrieverServicer
from searchrl.local.instance import Instance, ServiceRecord
from searchrl.platform.findings import FindingState
from searchrl.small_world.files import WARM_START_FOLDER
from tests.contract.harness import BothTransports, serving_retriever
from tests.fakes.small_run import write_questions

KEYS = "- {name: reader, key: right, scope: read}\n"


def doctor(capsys: pytest.CaptureFixture[str], *argv: object, code: int) -> dict[str, dict[str, Any]]:
    """Run the command and check its exit code; returns its findings by subject."""
    assert run(["doctor", "--json", *map(str, argv)]) == code
    return {row["subject"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_shortcoming_of_the_machine_comes_with_advice(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _name: ["no-such-package>=1; extra == 'trainer'"])
    found = doctor(capsys, "--folder", tmp_path / "new", code=2)
    assert found["trainer extra"]["state"] == "failed" and "no-such-package" in found["trainer extra"]["found"]
    assert "pip install -e '.[trainer]'" in found["trainer extra"]["advice"]
    assert found["generator extra"]["state"] == found["ports"]["state"] == "ok"
    assert all(row["advice"] for row in found.values() if row["state"] != "ok")


def test_little_space_is_a_warning_and_a_file_in_the_way_a_failure(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: psutil.disk_usage(str(path))._replace(free=2**20))
    monkeypatch.setattr("searchrl.cli.machine_checks.EXTRAS", ())
    assert doctor(capsys, "--folder", tmp_path, code=0)["disk"]["state"] == "warning"
    (tmp_path / "file").touch()
    assert "is a file" in doctor(capsys, "--folder", tmp_path / "file" / "run", code=2)["disk"]["found"]


class NamedRetriever(RetrieverServicer):
    """A retriever that finds nothing, in an index of the given name."""

    async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
        return pb.SearchResponse(generation="g1", queries=[pb.QueryResults() for _ in request.queries])


def write_record(folder: Path, retriever: BothTransports) -> None:
    """Write ``up.json`` as if this process had started the retriever, which shares a Redis."""
    (folder / "config").mkdir()
    (folder / "config" / "retriever.yaml").write_text("cache: {redis_url: 'redis://127.0.0.1:1/0'}\n")
    address = retriever.http_url.removeprefix("http://")
    services = {
        "retriever": ServiceRecord("ready", http=address, grpc=retriever.grpc_target),
        "generator": ServiceRecord("failed", http="127.0.0.1:1", grpc="127.0.0.1:1", log="its.log"),
    }
    started = psutil.Process().create_time()
    Instance(str(folder), os.getpid(), started, "ready", "0", {}, services).write()


def test_a_job_that_failed_is_a_failure_and_one_that_succeeded_is_not(tmp_path: Path) -> None:
    services = {
        "trainer": ServiceRecord("ended", exit_code=1, log="its.log"),
        "earlier": ServiceRecord("ended", exit_code=0),
    }
    Instance(str(tmp_path), os.getpid(), psutil.Process().create_time(), "ready", "0", {}, services).write()
    failed, succeeded = check_folder(tmp_path)
    assert (failed.state, failed.found, failed.advice) == (FindingState.FAILED, "ended, exit code 1", "see its.log")
    assert (succeeded.state, succeeded.found, succeeded.advice) == (FindingState.OK, "ended, exit code 0", "")


async def test_one_call_names_all_that_a_run_lacks(tmp_path: Path) -> None:
    """A retriever that knows another key, and no generator and no Redis on their ports; all with real sockets."""
    (tmp_path / "keys.yaml").write_text(KEYS)
    (tmp_path / "key").write_text("wrong\n")
    questions = write_questions(tmp_path / "questions.jsonl")
    async with serving_retriever(NamedRetriever(), tmp_path / "keys.yaml") as retriever:
        write_record(tmp_path, retriever)
        command = ["-m", "searchrl.cli.main", "doctor", "--json", "--preset", "small_world", "--folder", str(tmp_path)]
        command += ["--model", str(WARM_START_FOLDER), "--questions", str(questions), "--output", str(tmp_path / "run")]
        command += ["--set", f"services.key_file={tmp_path / 'key'}", "--set", "services.timeout_seconds=10"]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
    found = {row["subject"]: row for row in json.loads(output)}
    assert process.returncode == 2
    assert {name for name, row in found.items() if row["state"] == "failed"} == {
        "up: generator", "retriever", "generator", "judge",
    }  # fmt: skip
    assert "refuses this run (unauthenticated)" in found["retriever"]["found"]
    assert found["retriever"]["advice"] == "set services.key_file"
    assert "127.0.0.1:1 does not answer" in found["generator"]["found"]
    assert "searchrl up" in found["generator"]["advice"]
    assert found["redis"]["state"] == "warning" and "retriever.cache.redis_url" in found["redis"]["advice"]
    assert found["up: retriever"]["state"] == found["model"]["state"] == found["questions"]["state"] == "ok"
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_read_is_one_line(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("searchrl.cli.machine_checks.EXTRAS", ())
    found = doctor(capsys, "--preset", "small_world", "--set", "stepz=3", "--folder", tmp_path, code=2)
    assert "did you mean 'steps'?" in found["configuration"]["found"]
