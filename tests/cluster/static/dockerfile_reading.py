"""Parses a Dockerfile into its stages and their instructions, and finds the stages that a target needs."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "docker" / "Dockerfile"
SERVICES = ("retriever", "generator", "trainer", "evaluator")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; continued lines are joined."""

    verb: str
    text: str


@dataclass(slots=True)
class Stage:
    """The instructions from one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, verb: str) -> list[str]:
        return [one.text for one in self.instructions if one.verb == verb]

    def last(self, verb: str) -> str:
        return self.all(verb)[-1]


@dataclass(slots=True)
class Dockerfile:
    """A parsed file: the global arguments and the stages in order."""

    path: Path
    arguments: dict[str, str]
    stages: list[Stage]

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    def of_target(self, target: str) -> "Dockerfile":
        """Return what a build of ``target`` runs: this stage at the end, and before it the ones that it needs."""
        needed = {target}
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed |= {stage.base, *re.findall(r"--from=([\w-]+)", " ".join(stage.all("COPY")))}
        return Dockerfile(self.path, self.arguments, [stage for stage in self.stages if stage.name in needed])

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def labels(self) -> dict[str, str]:
        return dict(re.findall(r'(org\.opencontainers\.\S+)="([^"]*)"', " ".join(self.final.all("LABEL"))))

    def copied_from_context(self) -> set[str]:
        """Sources of every COPY and bind mount that come from the repository."""
        found: set[str] = set()
        for stage in self.stages:
            for text in stage.all("COPY"):
                if "--from=" not in text:
                    found |= set(text.split()[:-1])
            for text in stage.all("RUN"):
                found |= set(re.findall(r"--mount=type=bind,source=([^,\s]+)", text))
        return found


def read_dockerfile(path: Path) -> Dockerfile:
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for one in _instructions(path.read_text()):
        if one.verb == "FROM":
            base, _, name = one.text.partition(" AS ")
            stages.append(Stage(name.strip(), base.strip()))
        elif stages:
            stages[-1].instructions.append(one)
        elif one.verb == "ARG":
            name, _, default = one.text.partition("=")
            arguments[name] = default
    return Dockerfile(path, arguments, stages)


def service_file(service: str) -> Dockerfile:
    return read_dockerfile(FILE).of_target(service)


def entry_point(stage: Stage) -> list[str]:
    return json.loads(stage.last("ENTRYPOINT"))


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        verb, _, rest = line.strip().partition(" ")
        yield Instruction(verb.upper(), rest.strip())
