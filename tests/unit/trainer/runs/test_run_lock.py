"""The lock of a run: one process trains it, a second one waits, and a dead owner's lock is free at once."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from searchrl.errors import Unavailable
from searchrl.storage import durable_files
from services.trainer.runs.run_lock import LockOwner, RunLock
from services.trainer.runs.stop_run import stop_run

HOLDER = """
import sys, time
from pathlib import Path
from searchrl.platform.processes import exit_on_sigterm
from services.trainer.runs.run_lock import RunLock
exit_on_sigterm()
lock = RunLock(Path(sys.argv[1]))
print(lock.try_acquire(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


async def test_a_second_process_waits_and_then_names_the_owner_of_the_run(holder, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"process {holder.pid} on "):
        await RunLock(tmp_path).acquire(0.3)


async def test_the_lock_of_a_killed_process_is_free_at_once(holder, tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = RunLock(tmp_path)
    await lock.acquire(5.0)
    owner = lock.owner()
    assert owner is not None and owner.pid == os.getpid()
    lock.release()


def test_the_owner_of_a_run_is_asked_to_stop_and_waited_for(holder, tmp_path: Path) -> None:
    assert stop_run(tmp_path, 20.0)
    assert holder.wait(timeout=5) == 143


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable_files.fcntl, "flock", flock)


def test_without_locks_the_owner_is_stopped_too_and_its_file_stays(holder, no_locks: None, tmp_path: Path) -> None:
    written = (tmp_path / "run.lock").read_text()
    assert stop_run(tmp_path, 20.0)
    assert holder.wait(timeout=5) == 143
    assert (tmp_path / "run.lock").read_text() == written


@pytest.mark.parametrize("started", [None, 1])
def test_without_locks_a_process_that_may_be_another_gets_no_signal(
    holder, no_locks: None, tmp_path: Path, started: int | None
) -> None:
    """Only a file that does not say when its process began leaves open whether that process ended."""
    owner = {"host": socket.gethostname(), "pid": holder.pid, "started": started}
    (tmp_path / "run.lock").write_text(json.dumps(owner))
    assert stop_run(tmp_path, 0.0) is (started is not None)
    assert holder.poll() is None


def test_the_owner_is_read_again_while_a_run_is_stopped(
    holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = [LockOwner(socket.gethostname(), 2**22 + 1), RunLock(tmp_path).owner()]
    monkeypatch.setattr(RunLock, "owner", lambda _lock: owners.pop(0) if len(owners) > 1 else owners[0])
    assert stop_run(tmp_path, 20.0)
    assert holder.wait(timeout=5) == 143


def test_while_the_lock_file_names_an_earlier_owner_nobody_gets_a_signal(holder, tmp_path: Path) -> None:
    """The process id of an owner that ended may be in use again."""
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        earlier = {"host": socket.gethostname(), "pid": bystander.pid, "started": 1}
        (tmp_path / "run.lock").write_text(json.dumps(earlier))
        assert not stop_run(tmp_path, 0.2)
        assert bystander.poll() is None and holder.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_run_of_another_pod_continues_and_the_log_names_its_host(
    holder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.lock").write_text(json.dumps({"host": "elsewhere", "pid": holder.pid}))
    assert stop_run(tmp_path, 0.0)
    assert holder.poll() is None
    assert f"belongs to process {holder.pid} on elsewhere: it continues" in caplog.text


def test_a_run_that_nobody_holds_is_stopped_already(tmp_path: Path) -> None:
    assert stop_run(tmp_path, 1.0)
