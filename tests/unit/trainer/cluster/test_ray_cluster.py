"""The rendezvous of a run's pods, with a substitute for Ray's command line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
RAY = """#!/bin/sh
echo "$@" >> "$RAY_CALLS"
if [ "$2" = --head ] && [ -e "$FOLDER/is-busy" ]; then rm "$FOLDER/is-busy"; exit 1; fi
case "$*" in *--block*) exec sleep 600;; esac
"""


class Group:
    """Starts the launcher as the pods of a Job do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "ray").write_text(RAY)
        (folder / "bin" / "ray").chmod(0o755)
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, index: int, trainer: str = "", workers: int = 1, *flags: str) -> subprocess.Popen[str]:
        folder = str(self.folder / "rendezvous")
        command = [sys.executable, "-m", "services.trainer.cluster.ray_cluster", "--rendezvous", folder]
        command += ["--workers", str(workers), "--index", str(index), *flags, "--", sys.executable, "-c", trainer]
        environment = {
            **os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "POD_IP": "127.0.0.1",
            "RAY_CALLS": str(self.folder / "calls"), "FOLDER": str(self.folder),
        }  # fmt: skip
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self.processes.append(process)
        return process

    @property
    def meet(self) -> Path:
        return self.folder / "rendezvous" / "group"


@pytest.fixture
def group(tmp_path: Path):
    started = Group(tmp_path)
    yield started
    for process in started.processes:
        lose(process)


def lose(process: subprocess.Popen[str]) -> None:
    """Kill everything that a pod runs, as if its node were lost."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


def test_the_trainer_runs_once_the_workers_have_joined_and_everybody_ends(group: Group) -> None:
    head = group.start(0, "import os; print(os.environ['RAY_ADDRESS'])", workers=2)
    wait_for(group.meet / "head.json")
    workers = [group.start(index, workers=2) for index in (1, 2)]
    assert head.wait(timeout=60) == 0
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert json.loads((group.meet / "head.json").read_text())["over"] is True
    assert "start --address=127.0.0.1:6379 --block" in (group.folder / "calls").read_text()


@pytest.mark.parametrize("flags", [(), ("--rank-on-head",)])
def test_ray_places_a_rank_in_the_heads_pod_only_if_it_is_told_to(group: Group, flags: tuple[str, ...]) -> None:
    assert group.start(0, "pass", 0, *flags).wait(timeout=60) == 0
    (start, *_) = (group.folder / "calls").read_text().splitlines()
    assert start.startswith("start --head") and ("--num-cpus=0" in start) == (not flags)


def test_ray_is_started_again_where_a_busy_machine_was_too_slow(group: Group) -> None:
    (group.folder / "is-busy").touch()
    head, worker = group.start(0, "pass"), group.start(1)
    assert (head.wait(timeout=60), worker.wait(timeout=60)) == (0, 0)
    calls = (group.folder / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls if "--address" not in call][:3] == ["start", "stop", "start"]


def test_the_heads_exit_code_is_the_trainers(group: Group) -> None:
    group.start(1)
    assert group.start(0, "raise SystemExit(2)").wait(timeout=60) == 2


def test_an_interrupted_head_interrupts_the_trainer_and_workers_stay_for_the_next(group: Group) -> None:
    worker = group.start(1)
    trainer = (
        "import os, pathlib, signal, sys, time;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "pathlib.Path(os.environ['FOLDER'], 'training').touch(); time.sleep(60)"
    )
    head = group.start(0, trainer)
    wait_for(group.folder / "training")
    head.send_signal(signal.SIGTERM)
    assert head.wait(timeout=60) == 143
    assert worker.poll() is None
    assert group.start(0, "pass").wait(timeout=60) == 0
    assert worker.wait(timeout=60) == 0


def test_a_head_that_is_interrupted_while_the_trainer_starts_does_not_send_the_workers_home(group: Group) -> None:
    worker = group.start(1)
    trainer = "import os, pathlib, time; pathlib.Path(os.environ['FOLDER'], 'starting').touch(); time.sleep(60)"
    head = group.start(0, trainer)
    wait_for(group.folder / "starting")
    head.send_signal(signal.SIGTERM)
    assert head.wait(timeout=60) == 143
    assert group.start(0, "pass").wait(timeout=60) == 0
    assert worker.wait(timeout=60) == 0


def test_a_trainer_that_failed_with_a_lost_worker_is_started_again(group: Group) -> None:
    worker = group.start(1)
    trainer = (
        "import os, pathlib, sys, time; mark = pathlib.Path(os.environ['FOLDER'], 'first');"
        "again = mark.exists(); mark.touch(); time.sleep(0 if again else 3); sys.exit(0 if again else 1)"
    )
    head = group.start(0, trainer)
    wait_for(group.folder / "first")
    lose(worker)
    time.sleep(2)
    group.start(1)
    assert head.wait(timeout=90) == 0


def test_a_trainer_that_fails_by_itself_is_not(group: Group) -> None:
    group.start(1)
    assert group.start(0, "raise SystemExit(1)").wait(timeout=60) == 1
