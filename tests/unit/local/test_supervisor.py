"""Processes are started, awaited, restarted and stopped, and never outlive their supervisor."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from searchrl.errors import ConfigurationError
from searchrl.local.supervised_process import LONGEST_BACKOFF_SECONDS, ProcessState
from searchrl.local.supervisor import ServiceFailed, Supervisor

SERVICE = """
import json, os, signal, sys, time
ready, port = sys.argv[1], os.environ.get("TOY_LISTEN__HTTP_PORT", "4321")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("serving", flush=True)
with open(ready + ".tmp", "w") as file:
    json.dump({"http": f"127.0.0.1:{port}", "grpc": "127.0.0.1:2", "pid": os.getpid()}, file)
os.rename(ready + ".tmp", ready)
while True:
    time.sleep(60)
"""

# ignores SIGTERM and starts a grandchild
STUBBORN = """
import json, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".tmp", "w") as file:
    json.dump({"pid": os.getpid(), "grandchild": grandchild.pid}, file)
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(600)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path, grace_seconds=0.5) as running:
        yield running


def command(source: str, supervisor: Supervisor, name: str = "toy") -> list[str]:
    return [sys.executable, "-c", source, str(supervisor.ready_file(name))]


def pid_of(answer: dict[str, object], key: str = "pid") -> int:
    pid = answer[key]
    assert isinstance(pid, int)
    return pid


def eventually(holds: Callable[[], bool], seconds: float = 15.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_service_is_ready_when_its_ready_file_says_so(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(SERVICE, supervisor))
    answer = supervisor.wait_ready("toy", 20)
    assert answer["http"] == "127.0.0.1:4321"
    assert psutil.pid_exists(pid_of(answer))
    assert supervisor.log_file("toy").read_text() == "serving\n"


def test_a_ready_file_of_an_earlier_run_does_not_count(supervisor: Supervisor) -> None:
    supervisor.ready_file("toy").write_text(json.dumps({"http": "old:1"}))
    supervisor.start("toy", [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(TimeoutError, match="not ready within"):
        supervisor.wait_ready("toy", 0.2)


def test_stopping_ends_the_process_and_what_it_started(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(STUBBORN, supervisor))
    answer = supervisor.wait_ready("toy", 20)
    supervisor.stop("toy")
    assert eventually(lambda: gone(pid_of(answer)) and gone(pid_of(answer, "grandchild")))
    assert supervisor.processes()["toy"].state is ProcessState.STOPPED


def test_a_service_that_handles_sigterm_ends_by_itself(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(SERVICE, supervisor))
    answer = supervisor.wait_ready("toy", 20)
    supervisor.stop_all()
    assert gone(pid_of(answer))


def test_processes_are_stopped_in_the_reverse_order_of_their_start(supervisor: Supervisor, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    tell = SERVICE.replace("sys.exit(0)", "(open(sys.argv[2], 'a').write(sys.argv[3] + '\\n'), sys.exit(0))")
    for name in ("first", "second", "third"):
        supervisor.start(name, [*command(tell, supervisor, name), str(ends), name])
        supervisor.wait_ready(name, 20)
    supervisor.stop_all()
    assert ends.read_text().split() == ["third", "second", "first"]


def test_a_crashed_service_is_not_started_again_while_others_are_stopped(supervisor: Supervisor) -> None:
    supervisor.start("crashed", [sys.executable, "-c", "print('started'); raise SystemExit(1)"])
    process = supervisor.processes()["crashed"]
    assert eventually(lambda: process.state is ProcessState.WAITING)
    process.next_start = float("inf")
    supervisor.start("toy", command(STUBBORN, supervisor))
    supervisor.wait_ready("toy", 20)
    process.next_start = time.monotonic() + 0.1  # while "toy", which ignores SIGTERM, has its grace period of 0.5 s
    supervisor.stop_all()
    assert process.log_file.read_text() == "started\n"
    assert process.restarts == 0


def test_a_crashed_service_is_restarted_on_its_ports(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(SERVICE, supervisor), env_prefix="TOY_", env={"TOY_LISTEN__HTTP_PORT": "777"})
    first = supervisor.wait_ready("toy", 20)
    process = supervisor.processes()["toy"]
    process.env = {}  # so that the port can only come from the ready file
    os.kill(pid_of(first), signal.SIGKILL)
    assert eventually(lambda: process.state is ProcessState.READY and process.answer.get("pid") != first["pid"])
    assert process.answer["http"] == "127.0.0.1:777"
    assert process.restarts == 1


def test_a_restart_keeps_the_ports_too(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(SERVICE, supervisor), env_prefix="TOY_")
    first = supervisor.wait_ready("toy", 20)
    supervisor.restart("toy")
    second = supervisor.wait_ready("toy", 20)
    assert second["http"] == first["http"]
    assert second["pid"] != first["pid"]


def test_a_service_that_refuses_its_settings_is_not_restarted(supervisor: Supervisor) -> None:
    supervisor.start("toy", [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(ServiceFailed, match="exit code 2"):
        supervisor.wait_ready("toy", 20)
    assert supervisor.processes()["toy"].state is ProcessState.ENDED


def test_a_failed_start_shows_the_end_of_the_log(supervisor: Supervisor) -> None:
    supervisor.start("toy", [sys.executable, "-c", "import sys; sys.exit('no such corpus')"])
    with pytest.raises(ServiceFailed, match="no such corpus"):
        supervisor.wait_ready("toy", 20)


def test_a_command_that_does_not_exist_is_named_in_the_log(supervisor: Supervisor) -> None:
    supervisor.start("toy", ["/no/such/program"], restart=False)
    assert supervisor.wait("toy", 20) == 127
    assert "cannot start /no/such/program" in supervisor.log_file("toy").read_text()


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_ends_with_its_own_exit_code(supervisor: Supervisor, code: int) -> None:
    supervisor.start("job", [sys.executable, "-c", f"raise SystemExit({code})"], restart=False)
    assert supervisor.wait("job", 20) == code


def test_two_processes_of_one_name_are_refused(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(SERVICE, supervisor))
    with pytest.raises(ConfigurationError, match="running already"):
        supervisor.start("toy", command(SERVICE, supervisor))


def test_a_process_survives_the_thread_that_started_it(supervisor: Supervisor) -> None:
    thread = threading.Thread(target=lambda: supervisor.start("toy", command(SERVICE, supervisor)))
    thread.start()
    thread.join()
    answer = supervisor.wait_ready("toy", 20)
    assert not gone(pid_of(answer))


def test_changes_of_the_state_are_reported(tmp_path: Path) -> None:
    states: list[ProcessState] = []
    ready = threading.Event()

    def note() -> None:
        states.extend(process.state for process in watched.processes().values())
        if ProcessState.READY in states:
            ready.set()

    with Supervisor(tmp_path, grace_seconds=0.5, on_change=note) as watched:
        watched.start("toy", command(SERVICE, watched))
        assert ready.wait(20)
    assert states[-1] is ProcessState.STOPPED


def test_a_change_that_cannot_be_recorded_stops_neither_the_watching_nor_the_stopping(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with Supervisor(tmp_path, grace_seconds=0.5, on_change=fail) as unrecorded:
        first = {}
        for name in ("first", "second"):
            unrecorded.start(name, command(SERVICE, unrecorded, name))
            first[name] = pid_of(unrecorded.wait_ready(name, 20))
        process = unrecorded.processes()["first"]
        os.kill(first["first"], signal.SIGKILL)
        assert eventually(lambda: process.state is ProcessState.READY and process.restarts == 1)
        again = pid_of(process.answer)
    assert gone(again) and gone(first["second"])


def test_a_restart_that_fails_is_repeated_and_others_are_still_watched(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(SERVICE, supervisor))
    first = supervisor.wait_ready("toy", 20)
    process = supervisor.processes()["toy"]
    log = process.log_file
    process.log_file = log.parent / "missing" / "toy.log"  # opening it fails, as on a full disk
    os.kill(pid_of(first), signal.SIGKILL)
    assert eventually(lambda: process.state is ProcessState.WAITING)
    scheduled = process.next_start
    assert eventually(lambda: process.next_start > scheduled)
    supervisor.start("job", [sys.executable, "-c", "raise SystemExit(0)"], restart=False)
    assert supervisor.wait("job", 20) == 0
    process.log_file = log
    assert eventually(lambda: process.state is ProcessState.READY)
    assert process.restarts == 1


def test_a_service_that_has_crashed_for_days_is_restarted_like_before(supervisor: Supervisor) -> None:
    supervisor.start("toy", command(SERVICE, supervisor))
    first = supervisor.wait_ready("toy", 20)
    process = supervisor.processes()["toy"]
    process._failures = 5000
    os.kill(pid_of(first), signal.SIGKILL)
    assert eventually(lambda: process.state is ProcessState.WAITING)
    assert 0 < process.next_start - time.monotonic() <= LONGEST_BACKOFF_SECONDS


def test_a_start_that_fails_leaves_no_process_to_watch(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "logs" / "toy.log").mkdir()
    with pytest.raises(IsADirectoryError):
        supervisor.start("toy", command(SERVICE, supervisor))
    assert not supervisor.processes()


@pytest.mark.parametrize("source", [SERVICE, STUBBORN])
def test_a_killed_supervisor_leaves_no_process(tmp_path: Path, source: str) -> None:
    script = textwrap.dedent(f"""
        import json, pathlib, sys, time
        from searchrl.local.supervisor import Supervisor
        supervisor = Supervisor(pathlib.Path(sys.argv[1]), grace_seconds=0.5)
        ready = str(supervisor.ready_file("toy"))
        supervisor.start("toy", [sys.executable, "-c", {source!r}, ready])
        answer = supervisor.wait_ready("toy", 20)
        answer["process_guard"] = supervisor.processes()["toy"].guard_pid
        print(json.dumps(answer), flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        answer = json.loads(killed.stdout.readline())
        killed.kill()
    pids = [answer[key] for key in ("pid", "process_guard", "grandchild") if key in answer]
    assert eventually(lambda: all(gone(pid) for pid in pids))
