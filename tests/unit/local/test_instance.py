"""The record of running services is complete, and a stale one is recognized."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from searchrl.cli import main
from searchrl.errors import ConfigurationError
from searchrl.local.instance import Instance, ServiceRecord, acquire_lock, running_instance
from searchrl.platform.processes import is_running


def record(folder: Path, pid: int, started: float, state: str = "ready") -> Instance:
    service = ServiceRecord("ready", pid=1, http="127.0.0.1:1", grpc="127.0.0.1:2")
    return Instance(str(folder), pid, started, state, "0.1.0", {"corpus": "c"}, {"retriever": service})


def own_record(folder: Path) -> Instance:
    return record(folder, os.getpid(), psutil.Process().create_time())


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = own_record(tmp_path)
    written.write()
    assert Instance.read(tmp_path) == written
    assert written.is_alive
    assert running_instance(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == ["up.json"]


def test_a_folder_without_record_has_no_instance(tmp_path: Path) -> None:
    assert Instance.read(tmp_path) is None
    with pytest.raises(ConfigurationError, match="nothing was started"):
        running_instance(tmp_path)


def test_a_record_of_a_dead_supervisor_is_stale(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    record(tmp_path, dead.pid, 0.0).write()
    with pytest.raises(ConfigurationError, match="have ended: start them again"):
        running_instance(tmp_path)


def test_a_pid_that_another_process_has_now_is_not_the_supervisor(tmp_path: Path) -> None:
    assert is_running(os.getpid(), psutil.Process().create_time())
    assert not is_running(os.getpid(), psutil.Process().create_time() - 3600)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"services": 1}', '{"services": {}, "pid": 2}'])
def test_a_file_that_is_no_record_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "up.json").write_text(content)
    with pytest.raises(ConfigurationError, match="not a record"):
        Instance.read(tmp_path)


def test_a_folder_is_held_by_one_supervisor(tmp_path: Path) -> None:
    with acquire_lock(tmp_path / "up"):
        with pytest.raises(ConfigurationError, match=r"running in .* already"), acquire_lock(tmp_path / "up"):
            pass
        with acquire_lock(tmp_path / "other"):
            pass
    with acquire_lock(tmp_path / "up"):
        pass


def test_down_with_nothing_running_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["down", "--folder", str(tmp_path)]) == 0
    record(tmp_path, os.getpid(), 0.0).write()
    assert main.run(["down", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.replace("\n", " ").count("nothing is running") == 2


def test_status_of_a_stale_record_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, os.getpid(), 0.0).write()
    assert main.run(["status", "--folder", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "died"
