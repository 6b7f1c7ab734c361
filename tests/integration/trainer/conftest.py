"""Fixtures that start real processes: retriever, generator and trainer over two small worlds, on free ports."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from safetensors.numpy import load_file

from searchrl.small_world.files import WARM_START_FOLDER, write_small_world

ROOT = Path(__file__).parents[3]
SECONDS = 480  # of any wait: a trainer imports torch and runs eight steps on one thread, beside much else
STEPS = 8  # enough to be killed at several steps and to continue afterwards
GROUPS = 2  # groups per step
SIZE = 4  # rollouts per group


def environment() -> dict[str, str]:
    """This process's environment without settings of the services, and with one thread for numeric libraries."""
    prefixes = ("RETRIEVER_", "GENERATOR_", "TRAINER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return kept | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def wait_until(condition: Callable[[], bool], what: str, log: Path) -> None:
    """Poll until ``condition()`` holds, for effects of another process; on a timeout show its log.

    Polls every 5 ms, because tests interrupt a step under way, which must not have ended by then.
    """
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}: {log.read_text()[-4000:]}"
        time.sleep(0.005)


class ServiceProcess:
    """A retriever or a generator that can be killed and restarted on the same ports."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, str]) -> None:
        self._module, self._prefix = f"services.{name}", name.upper()
        self._ready, self._log = folder / f"{name}.json", folder / f"{name}.log"
        self._settings = dict(settings)
        self._ports = {"http": "0", "grpc": "0"}
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the service, and wait until it is ready."""
        self._ready.unlink(missing_ok=True)
        variables = {
            **self._settings,
            "READY_FILE": str(self._ready),
            "LOG_FORMAT": "text",
            "LISTEN__HTTP_PORT": self._ports["http"],
            "LISTEN__GRPC_PORT": self._ports["grpc"],
        }
        own = {f"{self._prefix}_{name}": value for name, value in variables.items()}
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module], cwd=ROOT, env=environment() | own, stdout=log, stderr=log
            )
        self.process = process
        wait_until(lambda: self._ready.exists() or process.poll() is not None, self._module, self._log)
        assert process.poll() is None, self._log.read_text()
        ready = json.loads(self._ready.read_text())
        self.grpc: str = ready["grpc"]
        self._ports = {name: ready[name].rpartition(":")[2] for name in ("http", "grpc")}

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the process by SIGKILL, as if its machine were lost: it cannot clean up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Environment:
    """The services of a run, its index, its questions and its initial model."""

    retriever: ServiceProcess
    generator: ServiceProcess
    index: Path
    questions: Path
    model: Path


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A retriever and a generator with the reader, shared by all runs."""
    folder = tmp_path_factory.mktemp("services")
    world = write_small_world(
        folder / "world", train_worlds=2, test_worlds=0, questions_per_world=10, large_questions=1
    )
    build = [sys.executable, "-m", "services.retriever.build_index", "--corpus", str(world.corpus)]
    built = subprocess.run(
        [*build, "--output", str(folder / "index"), "--kind", "bm25"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    model = folder / "model"
    shutil.copytree(WARM_START_FOLDER, model)
    started: list[ServiceProcess] = []
    try:
        started.append(ServiceProcess("retriever", folder, {"INDEX_DIR": str(folder / "index")}))
        started.append(ServiceProcess("generator", folder, {}))
        yield Environment(started[0], started[1], folder / "index", world.train, model)
    finally:
        for service in started:
            with suppress(ProcessLookupError):
                service.send(signal.SIGCONT)
            service.kill()


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's ``metrics.jsonl``; a last line still being written is left out."""
    path = folder / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


@dataclass
class TrainerProcess:
    """A running trainer and its run folder."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    ready_file: Path
    _client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=SECONDS, trust_env=False))

    def lines(self) -> list[dict[str, Any]]:
        """The steps recorded so far."""
        return step_lines(self.folder)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: len(self.lines()) >= step, f"step {step}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, what, self.log)
        assert condition(), f"the trainer ended before {what}: {self.log.read_text()[-4000:]}"

    def call(self, verb: str, path: str) -> dict[str, Any]:
        """Call the trainer over REST."""
        self.wait_until(self.ready_file.exists, "its ready file")
        address = json.loads(self.ready_file.read_text())["http"]
        response = self._client.request(verb, f"http://{address}{path}", json={} if verb == "POST" else None)
        response.raise_for_status()
        return response.json()

    def end(self) -> int:
        """Wait for the end of the process and return its exit code."""
        return self.process.wait(timeout=SECONDS)

    def finish(self) -> Path:
        """Wait for a successful end and return the run folder."""
        assert self.end() == 0, self.log.read_text()[-4000:]
        return self.folder


StartTrainer = Callable[..., TrainerProcess]


@pytest.fixture(scope="session")
def trainers(tmp_path_factory: pytest.TempPathFactory, services: Environment) -> Iterator[StartTrainer]:
    """Start trainers: ``start(folder, resume=..., settings={...}, killed=(instant, step), sampled=file)``."""
    started: list[TrainerProcess] = []
    logs = tmp_path_factory.mktemp("trainers")

    def start(
        folder: Path,
        *,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        killed: tuple[str, int] | None = None,
        sampled: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> TrainerProcess:
        number = len(started)
        ready_file, log = logs / f"{number}.json", logs / f"{number}.log"
        given = ["--resume", str(folder)] if resume else ["--config", str(_write_config(folder, services))]
        process_settings = {
            "listen.http_port": 0,
            "listen.grpc_port": 0,
            "log_format": "text",
            "ready_file": ready_file,
        }
        for name, value in {**process_settings, **(settings or {})}.items():
            given += ["--set", f"{name}={value}"]
        module = ["services.trainer"]
        if killed is not None:
            module = ["tests.fakes.killed_trainer", *map(str, killed)]
        elif sampled is not None:
            module = ["tests.fakes.counting_trainer", str(sampled)]
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, *given, *arguments],
                cwd=ROOT, env=environment(), stdout=output, stderr=output,
            )  # fmt: skip
        started.append(TrainerProcess(process, folder, log, ready_file))
        return started[-1]

    yield start
    for trainer in started:
        if trainer.process.poll() is None:
            trainer.process.kill()
        trainer.process.wait()


def _write_config(folder: Path, services: Environment) -> Path:
    """Write the configuration of a run of few small steps; returns its path."""
    path = folder.with_name(folder.name + "-run.yaml")
    config = {
        "preset": "small_world",
        "model": str(services.model),
        "questions": str(services.questions),
        "output": str(folder),
        "steps": STEPS,
        "services": {"retriever": services.retriever.grpc, "generator": services.generator.grpc, "timeout_seconds": 20},
        "rollouts": {
            "groups_per_step": GROUPS,
            "group_size": SIZE,
            "circuit_breaker": {"probe_seconds": 0.1, "window": 8},
        },
        "update": {"optim": {"learning_rate": 0.002}},
        "logging": {"trackers": []},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def final_weights(folder: Path) -> dict[str, bytes]:
    """The bytes of every weight of the final model, by name."""
    tensors = load_file(folder / "final" / "model.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def uninterrupted(trainers: StartTrainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run, with which the disturbed ones are compared."""
    return trainers(tmp_path_factory.mktemp("uninterrupted") / "run").finish()
