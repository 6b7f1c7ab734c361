"""``searchrl up`` starts real services, restarts those that die, and leaves no process behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from searchrl.small_world.files import SmallWorldFiles, write_small_world

pytestmark = pytest.mark.slow


def searchrl(*arguments: str | Path, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "searchrl.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def eventually(holds: Callable[[], bool], seconds: float = 120.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorldFiles:
    folder = tmp_path_factory.mktemp("world")
    return write_small_world(folder, train_worlds=1, test_worlds=1, questions_per_world=6, large_questions=4)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Folders whose instances are stopped at the end, even if the test fails."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(tmp_path / name)
        return made[-1]

    yield make
    for folder in made:
        searchrl("down", "--folder", folder, "--timeout", "20")


def status(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads(searchrl("status", "--folder", folder, "--json").stdout)["services"]


def pids(folder: Path) -> list[int]:
    """Process ids of the supervisor, its process guards and the services."""
    supervisor = psutil.Process(json.loads((folder / "up.json").read_text())["supervisor_pid"])
    return [supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))]


def test_services_come_up_answer_and_go_down(world: SmallWorldFiles, folders: Callable[[str], Path]) -> None:
    folder = folders("up")
    started = searchrl("up", "--corpus", world.corpus, "--questions", world.test, "--folder", folder, "--detach")
    assert started.returncode == 0, started.stdout + started.stderr
    assert "everything is ready" in started.stdout and "grpcurl" in started.stdout
    services = status(folder)
    assert {name: row["state"] for name, row in services.items()} == dict.fromkeys(
        ("retriever", "generator", "evaluator"), "ready"
    )
    running = pids(folder)

    question = json.loads(world.test.read_text().splitlines()[0])
    asked = searchrl("ask", question["question"], "--method", "rag", "--folder", folder, "--filter", "world=w001")
    assert asked.returncode == 0, asked.stderr
    assert "found 1" in asked.stdout and "answer" in asked.stdout

    wrong = searchrl("ask", "q", "--method", "rga", "--folder", folder)
    assert (wrong.returncode, wrong.stderr) == (2, "searchrl: unknown method 'rga': did you mean 'rag'?\n")

    report = folder / "report.html"
    evaluated = searchrl(
        "evaluate", "--folder", folder, "--methods", "direct,rag", "--limit", "4", "--report", report, "--json"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["state"] == "finished"
    assert report.read_text().startswith("<!DOCTYPE html>")

    again = searchrl("up", "--corpus", world.corpus, "--folder", folder, "--detach")
    assert again.returncode == 2 and "already" in again.stderr

    assert searchrl("down", "--folder", folder).returncode == 0
    assert all(gone(pid) for pid in running)
    assert searchrl("status", "--folder", folder).returncode == 1


def test_a_killed_service_is_restarted_on_its_ports_which_no_other_instance_uses(
    world: SmallWorldFiles, folders: Callable[[str], Path]
) -> None:
    first, second = folders("first"), folders("second")
    for folder in (first, second):
        started = searchrl("up", "--corpus", world.corpus, "--folder", folder, "--detach")
        assert started.returncode == 0, started.stdout + started.stderr
    before = status(first)["retriever"]
    assert before["http"] != status(second)["retriever"]["http"]
    pid = before["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        now = status(first)["retriever"]
        return now["state"] == "ready" and now["pid"] != pid

    assert eventually(is_back)
    after = status(first)["retriever"]
    assert (after["http"], after["grpc"], after["restarts"]) == (before["http"], before["grpc"], 1)
    searched = httpx.post(f"http://{after['http']}/v1/search", json={"queries": ["Motors"]}, trust_env=False)
    assert searched.json()["queries"][0]["results"]

    assert searchrl("down", "--folder", first).returncode == 0
    assert all(row["state"] == "ready" for row in status(second).values())


def test_a_killed_supervisor_leaves_no_process_and_a_folder_that_can_be_used_again(
    world: SmallWorldFiles, folders: Callable[[str], Path]
) -> None:
    folder = folders("up")
    assert searchrl("up", "--corpus", world.corpus, "--folder", folder, "--detach").returncode == 0
    running = pids(folder)
    os.kill(running[0], signal.SIGKILL)
    assert eventually(lambda: all(gone(pid) for pid in running))
    stale = searchrl("status", "--folder", folder)
    assert stale.returncode == 1 and "died" in stale.stdout
    assert searchrl("up", "--corpus", world.corpus, "--folder", folder, "--detach").returncode == 0


def test_ctrl_c_in_the_foreground_stops_everything(world: SmallWorldFiles, folders: Callable[[str], Path]) -> None:
    folder = folders("up")
    command = [sys.executable, "-m", "searchrl.cli.main", "up", "--corpus", str(world.corpus), "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as foreground:
        assert foreground.stdout is not None
        assert any("everything is ready" in line for line in foreground.stdout)
        running = pids(folder)
        foreground.send_signal(signal.SIGINT)
        assert foreground.wait(60) == 0
    assert all(gone(pid) for pid in running)


def test_an_unusable_row_is_one_sentence_and_nothing_runs(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "\\"T\\"\\ntext"}\n{"id": "2"}\n')
    for arguments in ((), ("--detach",)):
        started = searchrl("up", "--corpus", corpus, "--folder", folders("up"), *arguments)
        assert started.returncode == 2
        assert started.stderr.startswith("searchrl: no index was built: ") and started.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_sentence(world: SmallWorldFiles, folders: Callable[[str], Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        setting = f"retriever.listen.http_port={port}"
        started = searchrl("up", "--corpus", world.corpus, "--folder", folders("up"), "--set", setting)
    assert started.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in started.stderr and started.stderr.count("\n") == 1


def test_a_setting_that_a_service_does_not_know_is_named_with_the_nearest(
    world: SmallWorldFiles, folders: Callable[[str], Path]
) -> None:
    started = searchrl(
        "up", "--corpus", world.corpus, "--folder", folders("up"), "--set", "retriever.limits.max_topk=3"
    )
    assert started.returncode == 2
    assert "did you mean 'max_top_k'?" in started.stderr


def test_with_keys_only_a_valid_one_may_ask(
    world: SmallWorldFiles, tmp_path: Path, folders: Callable[[str], Path]
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("- {name: op, key: a-secret, scope: admin}\n- {name: app, key: r-secret, scope: read}\n")
    folder = folders("up")
    started = searchrl("up", "--corpus", world.corpus, "--folder", folder, "--keys", keys, "--detach")
    assert started.returncode == 0, started.stderr
    assert "authorization: Bearer KEY" in started.stdout
    right = searchrl("ask", "Who founded Motors?", "--method", "rag", "--folder", folder, "--key", "r-secret")
    assert right.returncode == 0, right.stderr
    wrong = searchrl("ask", "Who founded Motors?", "--folder", folder, "--key", "guess")
    assert (wrong.returncode, wrong.stderr) == (2, "searchrl: this API key is not valid here\n")
