"""Writes the settings file of each service on one machine, from the plan's defaults and the user's settings."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from searchrl.errors import ConfigurationError, unknown_name
from searchrl.platform.settings import merge, parse_assignment, read_yaml

SERVICES = ("retriever", "generator", "evaluator", "trainer")


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The language model behind the generator; see the generator's settings of the same names."""

    kind: str = "reader"
    base_url: str = ""
    model: str = ""
    key: str = ""

    def settings(self) -> dict[str, Any]:
        """Return the generator's settings of this engine.

        Raises:
            ConfigurationError: the kind needs another argument.
        """
        if self.kind == "url":
            if not self.base_url or not self.model:
                raise ConfigurationError("--engine url needs --engine-url and --engine-model")
            known = {"kind": "url", "base_url": self.base_url, "model": self.model}
            return {**known, "key": self.key} if self.key else known
        if self.kind == "vllm":
            if not self.model:
                raise ConfigurationError("--engine vllm needs --engine-model: a model folder, or a name on a hub")
            return {"kind": "vllm", "vllm": {"model": self.model}}
        return {"kind": "reader"}


@dataclass(slots=True)
class ServicePlan:
    """Settings of every service: the plan's own, then the user's file, then ``--set``; later ones take precedence.

    Attributes:
        folder: settings files are written to its sub-folder ``config``.
        user: the user's settings by service.
    """

    folder: Path
    user: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, config: Path | None, assignments: Iterable[str]) -> "ServicePlan":
        """Merge the user's settings.

        Args:
            config: YAML with one mapping per service.
            assignments: ``service.name=value`` texts.

        Raises:
            ConfigurationError: the file is unreadable, or names an unknown service.
        """
        user = read_yaml(config) if config is not None else {}
        for assignment in assignments:
            user = merge(user, parse_assignment(assignment))
        for name, settings in user.items():
            if name not in SERVICES:
                raise ConfigurationError(unknown_name("service", str(name), SERVICES))
            if not isinstance(settings, Mapping):
                raise ConfigurationError(f"settings of '{name}' must be a mapping, such as {name}.log_format=json")
        return cls(folder, user)

    def is_requested(self, service: str) -> bool:
        """Whether the user gave settings for this service."""
        return service in self.user

    def command(self, service: str, ready_file: Path, settings: Mapping[str, Any]) -> list[str]:
        """Write the service's settings file and return the command that starts it."""
        base = {
            # Free ports, so that several folders can be served at once. 10 s of draining end before the supervisor's
            # SIGKILL after 25 s.
            "listen": {"host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "drain_seconds": 10.0},
            "log_format": "text",
        }
        path = self._write(service, merge(base, settings), {"ready_file": str(ready_file)})
        return [sys.executable, "-m", f"services.{service}", "--config", str(path)]

    def trainer_command(self, ready_file: Path, run: Mapping[str, Any]) -> list[str]:
        """Write the run file and return the command of the training job; a run that has a checkpoint is
        resumed.

        The trainer's file describes a run, so the settings of the process are passed as ``--set``.
        """
        path = self._write("trainer", run, {})
        output = Path(merge(run, self.user.get("trainer", {}))["output"])
        command = [sys.executable, "-m", "services.trainer", "--config", str(path)]
        if (output / "checkpoints").is_dir():
            command += ["--resume", str(output)]
        for setting in ("listen.http_port=0", "listen.grpc_port=0", f"ready_file={ready_file}", "log_format=text"):
            command += ["--set", setting]
        return command

    def _write(self, service: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> Path:
        """The user's settings go between ``below`` and ``above``."""
        # ``above`` holds what must not be changed, such as the ready file that the supervisor waits for.
        settings = merge(merge(below, self.user.get(service, {})), above)
        path = self.folder / "config" / f"{service}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # may hold keys
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return path


def environment_prefix(service: str) -> str:
    return f"{service.upper()}_"
