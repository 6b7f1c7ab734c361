"""Fixtures that start real processes: a generator server with scripted answers, and the evaluator."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SECONDS_TO_START = 240  # a start that takes longer is a failure; the margin is for a busy machine

StartGenerator = Callable[..., str]
StartEvaluator = Callable[..., "EvaluatorProcess"]


class EvaluatorProcess:
    """The evaluator's process and its addresses."""

    def __init__(self, process: subprocess.Popen[bytes], ready_file: Path) -> None:
        self.process = process
        deadline = time.monotonic() + SECONDS_TO_START
        while not ready_file.exists():
            assert process.poll() is None, "the evaluator ended before it was ready"
            assert time.monotonic() < deadline, "the evaluator did not get ready"
            time.sleep(0.05)
        ports = json.loads(ready_file.read_text())
        self.http, self.grpc = f"http://{ports['http']}", ports["grpc"]

    def kill(self) -> None:
        """End the process by SIGKILL, as if its machine were lost: it cannot clean up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@pytest.fixture
def start_generator() -> Iterator[StartGenerator]:
    """Start scripted generators: ``start(seconds per answer, port)`` returns the target."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float = 0.0, port: int = 0) -> str:
        command = [sys.executable, "-m", "tests.fakes.generator_server", str(seconds), str(port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return f"127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def start_evaluator(tmp_path: Path) -> Iterator[StartEvaluator]:
    """Start the evaluator on the test's store; a further call may follow after the first process has ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(generator: str, **settings: str) -> EvaluatorProcess:
        ready_file = tmp_path / f"ready-{len(started)}.json"
        environment = {
            **os.environ,
            "EVALUATOR_STORE": str(tmp_path / "results.sqlite"),
            "EVALUATOR_QUESTIONS_DIR": str(tmp_path),
            "EVALUATOR_READY_FILE": str(ready_file),
            "EVALUATOR_GENERATOR__TARGET": generator,
            "EVALUATOR_LISTEN__HTTP_PORT": "0",
            "EVALUATOR_LISTEN__GRPC_PORT": "0",
            "EVALUATOR_LISTEN__DRAIN_SECONDS": "5",
            "EVALUATOR_LOG_FORMAT": "text",
            **settings,
        }
        process = subprocess.Popen([sys.executable, "-m", "services.evaluator"], cwd=ROOT, env=environment)
        started.append(process)
        return EvaluatorProcess(process, ready_file)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    """Sixty questions of one to three hops."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {
            "id": f"q{number}",
            "question": f"Who leads company {number}?",
            "golden_answers": [f"Person {number}"],
            "gold_doc_ids": [f"p{number}-{hop}" for hop in range(1 + number % 3)],
            "metadata": {"hops": str(1 + number % 3)},
        }
        for number in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
