"""A training run inside the test's process: the real wiring, model and learner, with fakes of the other services."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from searchrl.domain.question import Question
from searchrl.platform.settings import merge
from searchrl.small_world.files import WARM_START_FOLDER, question_to_row
from searchrl.small_world.world import SmallWorld
from services.trainer import wiring
from services.trainer.metrics import TrainerMetrics
from services.trainer.runs.service_pins import Services
from services.trainer.settings import RunConfig, load_run_config
from services.trainer.training_service import TrainingService
from services.trainer.validation.history import is_validation
from tests.fakes.small_world_services import SmallWorldGenerator, SmallWorldSearcher

WORLD = SmallWorld("w000", "tests/small-run", 0.1)
QUESTIONS: tuple[Question, ...] = tuple(WORLD.questions(8, "train"))


def write_questions(path: Path, questions: tuple[Question, ...] = QUESTIONS) -> Path:
    import json

    path.write_text("".join(json.dumps(question_to_row(question)) + "\n" for question in questions))
    return path


def run_settings(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return the settings of a run of a few small steps in ``folder``; two underscores in a name stand for a dot."""
    questions = folder / "questions.jsonl"
    values: dict[str, Any] = {
        "preset": "small_world",
        "model": str(WARM_START_FOLDER),
        "questions": str(questions if questions.exists() else write_questions(questions)),
        "output": str(folder / "run"),
        "steps": 3,
        "services": {"generator": "in the test's process"},
        "rollouts": {
            "groups_per_step": 2, "group_size": 4, "retry_pause_seconds": 0.001,
            "circuit_breaker": {"window": 8, "probe_seconds": 0.005},
        },
        "update": {"optim": {"learning_rate": 2e-3}},
        "engine": {"slots": 16},
        "logging": {"trackers": [], "trajectories_every": 0},
    }  # fmt: skip
    for name, value in settings.items():
        nested = value
        for key in reversed(name.split("__")):
            nested = {key: nested}
        values = merge(values, nested)
    return values


def run_config(folder: Path, **settings: Any) -> RunConfig:
    import yaml

    path = folder / "run-settings.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(run_settings(folder, **settings)))
    return load_run_config(path)


class SmallRun:
    """One run in one folder. ``searcher`` and ``generator`` can be made to fail; ``service`` answers during the run."""

    def __init__(
        self,
        folder: Path,
        *,
        searcher: SmallWorldSearcher | None = None,
        generator: SmallWorldGenerator | None = None,
        **settings: Any,
    ) -> None:
        self.config = run_config(folder, **settings)
        self.folder = self.config.output
        self.searcher = searcher or SmallWorldSearcher(WORLD.passages)
        self.generator = generator or SmallWorldGenerator()
        self.registry = CollectorRegistry()
        services = Services(self.searcher, self.generator)
        self.service: TrainingService = wiring.build_service(self.config, services, TrainerMetrics(self.registry))

    async def train(self, resume: bool = False) -> "SmallRun":
        await self.service.run(resume)
        return self

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """The lines of the steps."""
        return [line for line in self.service.metrics(0) if not is_validation(line)]

    @property
    def validations(self) -> list[Mapping[str, Any]]:
        """The lines of the validations."""
        return [line for line in self.service.metrics(0) if is_validation(line)]

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the weights after each step."""
        return [str(line["fingerprint"]) for line in self.lines]

    def column(self, name: str) -> list[Any]:
        return [line[name] for line in self.lines]


def is_constant(values: list[Any]) -> bool:
    return all(first == second for first, second in itertools.pairwise(values))
