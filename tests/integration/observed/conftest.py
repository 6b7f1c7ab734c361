"""Fixtures that start all services as real processes and send their traces to a collector on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from searchrl.small_world.files import WARM_START_FOLDER, write_small_world
from tests.fakes.otlp_collector import OtlpCollector, running_collector

ROOT = Path(__file__).parents[3]
SECONDS = 480  # until a service is ready; some import torch, which is slow on a busy machine


@dataclass
class Installation:
    """The addresses of the running services, and the questions and passages that they know."""

    collector: OtlpCollector
    questions_file: Path
    questions: list[dict[str, Any]]
    passages: list[str]
    http: dict[str, str] = field(default_factory=dict)
    grpc: dict[str, str] = field(default_factory=dict)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, trust_env=False))

    def ask(self, headers: Mapping[str, str] | None = None, method: str = "s3", number: int = 0) -> str:
        """Send a question to the generator over REST; returns the complete event stream."""
        question = {key: self.questions[number][key] for key in ("id", "question", "golden_answers", "filters")}
        question["text"] = question.pop("question")
        body = {"question": question, "method": method}
        answer = self.client.post(f"{self.http['generator']}/v1/answer", json=body, headers=dict(headers or {}))
        assert answer.status_code == 200, answer.text
        return answer.text


class Processes:
    """Starts services as processes, and stops all of them."""

    def __init__(self, folder: Path, traces: Mapping[str, str]) -> None:
        self._folder, self._traces = folder, traces
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, module: str, arguments: list[str], **variables: str) -> dict[str, str]:
        """Start a service, wait for its ready file, and return the addresses in it."""
        ready, log = self._folder / f"{name}.json", self._folder / f"{name}.log"
        for setting in ("listen.http_port=0", "listen.grpc_port=0", f"ready_file={ready}", "log_format=json"):
            arguments = [*arguments, "--set", setting]
        environment = {**os.environ, **self._traces, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **variables}
        with log.open("w") as output:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        self._running.append(process)
        end = time.monotonic() + SECONDS
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.02)
        return json.loads(ready.read_text())

    def stop(self) -> None:
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Retriever, searcher, a separate engine, generator, evaluator, and a training job that outlasts the tests."""
    folder = tmp_path_factory.mktemp("observed")
    world = write_small_world(folder, train_worlds=1, test_worlds=1, questions_per_world=8, large_questions=2)
    build = [sys.executable, "-m", "services.retriever.build_index", "--corpus", str(world.corpus), "--kind", "bm25"]
    subprocess.run([*build, "--output", str(folder / "index")], cwd=ROOT, check=True, capture_output=True)
    questions = [json.loads(line) for line in world.test.read_text().splitlines()]
    with running_collector() as collector:
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        processes = Processes(folder, traces)
        passages = [json.loads(line)["contents"] for line in world.corpus.read_text().splitlines()]
        running = Installation(collector, world.test, questions, passages)
        try:
            _start(processes, running, folder, world.train)
            yield running
        finally:
            processes.stop()


def _start(processes: Processes, running: Installation, folder: Path, train: Path) -> None:
    """Start the services in the order of their dependencies, for each needs the addresses of earlier ones."""

    def start(name: str, module: str, *assignments: str, arguments: tuple[str, ...] = (), **variables: str) -> None:
        given = [*arguments, *(part for text in assignments for part in ("--set", text))]
        ready = processes.start(name, module, given, **variables)
        running.http[name], running.grpc[name] = f"http://{ready['http']}", ready["grpc"]

    # one service exports over gRPC, to cover the second protocol
    over_grpc: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": running.collector.grpc,
    }
    start("retriever", "services.retriever", f"index_dir={folder / 'index'}", **over_grpc)
    start("searcher", "services.policy_server", f"model={WARM_START_FOLDER}")
    start("engine", "services.generator", "engine.kind=reader", OTEL_SERVICE_NAME="searchrl-engine")
    start(
        "generator",
        "services.generator",
        "engine.kind=url",
        f"engine.base_url={running.http['engine']}/v1",
        "engine.model=reader",
        f"retriever.target={running.grpc['retriever']}",
        f"searcher.base_url={running.http['searcher']}",
        f"searcher.model={WARM_START_FOLDER.name}",
        f"searcher.model_dir={WARM_START_FOLDER}",
    )
    generator = f"generator.target={running.grpc['generator']}"
    start("evaluator", "services.evaluator", generator, f"store={folder / 'store'}", f"questions_dir={folder}")
    run = {
        "preset": "small_world",
        "run_id": "observed",
        "steps": 1000,
        "output": str(folder / "run"),
        "model": str(WARM_START_FOLDER),
        "questions": str(train),
        "rollouts": {"groups_per_step": 2, "group_size": 4},
        "services": {"retriever": running.grpc["retriever"], "generator": running.grpc["generator"]},
        "checkpoints": {"every": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    start("trainer", "services.trainer", arguments=("--config", str(folder / "run.yaml")))
