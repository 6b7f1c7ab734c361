"""Starts the services on one machine in the order of their calls, and keeps the record of what runs."""

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import searchrl
from searchrl.errors import ConfigurationError
from searchrl.local.index_build import IndexRequest, build_index, corpus_sha256, index_folder
from searchrl.local.instance import Instance, ServiceRecord
from searchrl.local.service_plan import EngineChoice, ServicePlan, environment_prefix
from searchrl.local.supervised_process import CONFIGURATION_EXIT, ProcessState, SupervisedProcess
from searchrl.local.supervisor import ServiceFailed, Supervisor
from searchrl.platform.processes import started_at
from searchrl.platform.server.auth import KeyRing

SEARCHER = "searcher"
POLICY_SERVER, SEARCHER_PREFIX = "services.policy_server", "POLICY_SERVER_"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What ``up`` is to serve, as its arguments name it."""

    index: IndexRequest | None = None
    index_dir: Path | None = None
    questions: Path | None = None
    engine: EngineChoice = field(default_factory=EngineChoice)
    searcher: Path | None = None
    searcher_url: str = ""
    keys_file: Path | None = None
    ready_seconds: float = 120.0
    """Longest start of one service: imports, and reading an index or a small model."""

    def check(self) -> None:
        """Refuse unusable inputs before anything is written or started.

        Raises:
            ConfigurationError: one sentence about the first problem.
        """
        corpus = self.index.corpus if self.index else None
        for what, path in (("corpus", corpus), ("questions", self.questions), ("keys", self.keys_file)):
            if path is not None and not path.is_file():
                raise ConfigurationError(f"--{what}: there is no file {path}")
        if self.index_dir is not None and not (self.index_dir / "current").is_file():
            raise ConfigurationError(f"--index: {self.index_dir} holds no index; build one with 'searchrl index'")
        if self.searcher is not None and not (self.searcher / "searcher.json").is_file():
            raise ConfigurationError(
                f"--searcher: {self.searcher} is no searcher's model folder (no searcher.json); 'searchrl profile' "
                "writes one"
            )
        self.engine.settings()

    def to_record(self) -> dict[str, str]:
        """Return the given inputs as text, for the record."""
        values = {
            "corpus": self.index.corpus.resolve() if self.index else None,
            "index": self.index_dir,
            "questions": self.questions.resolve() if self.questions else None,
            "searcher": self.searcher,
            "engine": self.engine.kind,
            "keys": self.keys_file,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


class LocalServices:
    """Starts the services under a supervisor and rewrites ``up.json`` at every change.

    Threads: ``start``, ``serve_searcher`` and ``close`` run in the caller's thread. ``write_record`` is also called by
    the supervisor's watching thread, so a lock keeps one record from overwriting a newer one; ``phase`` is read by
    the display's thread.
    """

    def __init__(self, folder: Path, inputs: Inputs, plan: ServicePlan) -> None:
        self.folder = folder
        self.phase = "starting"
        self._inputs = inputs
        self._plan = plan
        self._state = "starting"
        self._searcher_url = inputs.searcher_url
        self._record_lock = threading.Lock()
        self._key = _key_among_services(inputs.keys_file)
        self._started = started_at()
        self.supervisor = Supervisor(folder, on_change=self.write_record)

    def start(self) -> None:
        """Start everything; returns when every service is ready.

        Raises:
            ConfigurationError: an input or a setting is unusable.
            ServiceFailed: a service ended.
            TimeoutError: a service was not ready in time.
        """
        self.write_record()
        index_dir = self._index_dir()
        if self._inputs.searcher is not None and not self._inputs.searcher_url:
            self.serve_searcher(self._inputs.searcher)
        retriever = self._start("retriever", {"index_dir": str(index_dir), "require_index": True}) if index_dir else {}
        generator = self._start("generator", self._generator_settings(retriever))
        # Each service is ready before the next one starts, because ports are chosen by the system and known only then.
        targets = {"generator": self._target(generator)}
        if retriever:
            targets["retriever"] = self._target(retriever)
        store = str(self.folder / "evaluator" / "results.sqlite")
        # On the user's own machine any readable file may be evaluated, because the service listens on loopback only.
        self._start("evaluator", {"store": store, "questions_dir": "/", **targets})
        if self._plan.is_requested("trainer"):
            self._train(targets)
        self.phase, self._state = "ready", "ready"
        self.write_record()

    def serve_searcher(self, model_dir: Path) -> None:
        """Serve a tiny searcher's weights from this machine; another call replaces them, at the same address.

        Larger searchers are served by vLLM; give its address as ``searcher_url``.
        """
        # Stopped first: the new process needs the port, and two copies of the weights might not fit into memory.
        if SEARCHER in self.supervisor.processes():
            self.supervisor.stop(SEARCHER)
        command = [sys.executable, "-m", POLICY_SERVER, "--model", str(model_dir.resolve())]
        command += ["--ready-file", str(self.supervisor.ready_file(SEARCHER)), "--set", "log_format=text"]
        if self._inputs.keys_file is not None:
            command += ["--set", f"auth_keys_file={self._inputs.keys_file.resolve()}"]
        # The generator was started with this address, and is not restarted for other weights.
        port = self._searcher_url.rpartition(":")[2] or "0"
        environment = {f"{SEARCHER_PREFIX}LISTEN__HTTP_PORT": port, f"{SEARCHER_PREFIX}LISTEN__GRPC_PORT": "0"}
        answer = self._launch(SEARCHER, command, environment, env_prefix=SEARCHER_PREFIX)
        self._searcher_url = f"http://{answer['http']}"

    def close(self) -> None:
        """Stop everything, last started first, and record it."""
        self._state = self.phase = "stopping"
        self.supervisor.close()
        self._state = "stopped"
        self.write_record()

    @property
    def is_ready(self) -> bool:
        """Whether everything has started."""
        return self._state == "ready"

    def records(self) -> dict[str, ServiceRecord]:
        """Return the current state of the services."""
        return {name: _record(process) for name, process in self.supervisor.processes().items()}

    def write_record(self) -> None:
        """Write ``up.json``."""
        # Lock order: this lock, then the supervisor's (in ``records``). The supervisor calls here without holding its
        # own.
        with self._record_lock:
            Instance(
                folder=str(self.folder.resolve()),
                supervisor_pid=os.getpid(),
                started=self._started,
                state=self._state,
                searchrl_version=searchrl.__version__,
                inputs=self._inputs.to_record(),
                services=self.records(),
            ).write()

    def _index_dir(self) -> Path | None:
        index = self._inputs.index
        if index is None:
            return self._inputs.index_dir
        self.phase = f"reading {index.corpus.name}"
        folder = index_folder(index, self.folder / "indexes", corpus_sha256(index.corpus))
        self.phase = "building the index"
        build_index(folder, index, self._show_build)
        return folder

    def _show_build(self, phase: str, done: int, total: int) -> None:
        share = f" {100 * done // total} %" if total else ""
        self.phase = f"building the index: {phase}{share}"

    def _start(self, service: str, settings: Mapping[str, Any]) -> dict[str, object]:
        if self._inputs.keys_file is not None:
            settings = {**settings, "auth_keys_file": str(self._inputs.keys_file.resolve())}
        command = self._plan.command(service, self.supervisor.ready_file(service), settings)
        return self._launch(service, command, env_prefix=environment_prefix(service))

    def _train(self, targets: Mapping[str, Mapping[str, Any]]) -> None:
        """Start the training job of the user's settings; questions and searcher default to the served ones."""
        run: dict[str, Any] = {"output": str(self.folder.resolve() / "training")}
        if self._inputs.questions is not None:
            run["questions"] = str(self._inputs.questions.resolve())
        if self._inputs.searcher is not None:
            run["model"] = str(self._inputs.searcher.resolve())
        run["services"] = {name: target["target"] for name, target in targets.items()}
        if self._key:
            key_file = self.folder / "config" / "trainer.key"
            # Created with its mode before the key is written: at no time can others read it.
            key_file.touch(mode=0o600)
            key_file.write_text(self._key)
            run["services"]["key_file"] = str(key_file)
        self._launch("trainer", self._plan.trainer_command(self.supervisor.ready_file("trainer"), run), restart=False)

    def _launch(
        self,
        service: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        restart: bool = True,
        env_prefix: str = "",
    ) -> dict[str, object]:
        self.phase = f"starting the {service}"
        self.supervisor.start(service, command, environment, restart=restart, env_prefix=env_prefix)
        try:
            return self.supervisor.wait_ready(service, self._inputs.ready_seconds)
        except ServiceFailed as failure:
            # The service's last line is its own sentence about the setting ("retriever: ..."); its prefix is removed,
            # since the user called ``up``.
            if failure.exit_code == CONFIGURATION_EXIT:
                sentence = failure.log_tail.splitlines()[-1] if failure.log_tail else "it refused its settings"
                raise ConfigurationError(sentence.partition(": ")[2] or sentence) from failure
            raise

    def _target(self, answer: Mapping[str, object]) -> dict[str, Any]:
        target = {"target": answer["grpc"]}
        return {**target, "key": self._key} if self._key else target

    def _generator_settings(self, retriever: Mapping[str, object]) -> dict[str, Any]:
        settings: dict[str, Any] = {"engine": self._inputs.engine.settings()}
        if retriever:
            settings["retriever"] = self._target(retriever)
        if self._inputs.searcher is not None:
            folder = self._inputs.searcher.resolve()
            settings["searcher"] = {
                "model_dir": str(folder),
                "base_url": self._searcher_url,
                "model": folder.name,
            }
            if self._key:
                settings["searcher"]["key"] = self._key
        return settings


def _key_among_services(keys_file: Path | None) -> str:
    """Return the key that the services use among each other: the first admin key that the file holds as text.

    Raises:
        ConfigurationError: the file holds none.
    """
    if keys_file is None:
        return ""
    KeyRing.from_file(keys_file)  # refuses a malformed file with its own message
    for row in yaml.safe_load(keys_file.read_text()):
        if row.get("scope") == "admin" and row.get("key"):
            return str(row["key"])
    raise ConfigurationError(f"{keys_file}: the services need an entry with 'key' as text and scope 'admin'")


def _record(process: SupervisedProcess) -> ServiceRecord:
    # Read without the supervisor's lock, so the fields may be of two moments; the change that is under way is followed
    # by another record.
    answer = process.answer if process.state is ProcessState.READY else {}
    pid = answer.get("pid")
    return ServiceRecord(
        state=process.state.value,
        pid=pid if isinstance(pid, int) else None,
        http=str(answer.get("http", "")),
        grpc=str(answer.get("grpc", "")),
        restarts=process.restarts,
        exit_code=process.exit_code,
        log=str(process.log_file),
    )
