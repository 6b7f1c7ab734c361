"""Defines the files of a run: its folder, and the manifests of its inputs and of its final model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import Artifact, verify_folder, verify_input, write_artifact
from searchrl.storage.durable_files import atomic_path, read_complete_lines
from services.trainer.runs.run_events import is_event
from services.trainer.validation.history import find_last_step

if TYPE_CHECKING:
    from services.trainer.settings import RunConfig  # imports torch, which publishing a model does not need

CONFIG_FILE = "run.yaml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TRAJECTORIES = "trajectories"
VALIDATION = "validation"
FINAL = "final"
MODEL_ARTIFACT = "model"  # the kind of artifact that the final model is

StepLine = Mapping[str, float | int | str | bool | None]


class RunFolder:
    """The files of one run.

    ``run.yaml`` (the configuration), ``metrics.jsonl`` (one line per step, per validation and per event),
    ``trajectories/step_000001.parquet``, ``validation/step_000010.jsonl`` (one row per question), ``checkpoints/``,
    ``tensorboard/``, ``trackers/`` (the runs that trackers continue), ``untrained/`` (trajectories that wait for their
    reward or for the learner), ``engine/`` (logs of the servers that sample, and the newest weights) and, at the end,
    ``final/`` (a model folder).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG_FILE
        self.metrics = path / METRICS_FILE
        self.checkpoints = path / CHECKPOINTS
        self.trajectories = path / TRAJECTORIES
        self.untrained = path / "untrained"
        self.validation = path / VALIDATION
        self.engine = path / "engine"
        self.final = path / FINAL

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        # ``run.yaml`` alone is no run: its process ended before it recorded a step, so nothing is lost if another
        # configuration is started here.
        return self.metrics.exists() or any(self.checkpoints.glob("step_*"))

    def create(self, config_text: str) -> None:
        """Start a new run here.

        Raises:
            ConfigurationError: the folder holds a run already, or cannot be written.
        """
        if self.holds_run:
            raise ConfigurationError(
                f"{self.path} holds a run already: resume it without --new, or choose another output"
            )
        try:
            self.trajectories.mkdir(parents=True, exist_ok=True)
            self.write_config(config_text)
        except OSError as error:
            raise ConfigurationError(f"cannot write into the run folder {self.path}: {error.strerror}") from error

    def write_config(self, config_text: str) -> None:
        """Replace ``run.yaml``, atomically: it has the configuration with which the run continues."""
        # Only the holder of the run's lock writes here, so a fixed temporary name is safe, and the next process
        # replaces what a killed one has left of it.
        with atomic_path(self.config, unique=False) as part:
            part.write_text(config_text, encoding="utf-8")

    def truncate_after(self, step: int, *events: StepLine) -> None:
        """Remove what was written after ``step``, which the run writes again; events stay, and ``events`` are added."""
        self.trajectories.mkdir(parents=True, exist_ok=True)
        kept = [line for line in self._lines() if is_event(line) or _step(line) <= step]
        with atomic_path(self.metrics, unique=False) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in [*kept, *events]), encoding="utf-8")
        for path in self.trajectories.glob("step_*.parquet"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()

    def append(self, line: StepLine) -> None:
        """Append the line of one step, validation or event to ``metrics.jsonl`` and flush it to disk."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            # The checkpoint of this step follows and is flushed, too. If a power cut could keep it and lose this line,
            # the resumed run would never write the line again.
            os.fsync(file.fileno())

    def step_lines(self) -> list[StepLine]:
        """Return the lines of steps and validations so far."""
        return [line for line in self._lines() if not is_event(line)]

    def events(self) -> list[StepLine]:
        """Return the lines of events so far."""
        return [line for line in self._lines() if is_event(line)]

    def _lines(self) -> list[StepLine]:
        """Return all lines, without a last one that is incomplete."""
        # Its process was killed while it wrote the line, or the disk was full.
        return [json.loads(line) for line in read_complete_lines(self.metrics)] if self.metrics.exists() else []

    def trajectory_file(self, step: int) -> Path:
        return self.trajectories / f"step_{step:06d}.parquet"


def verify_inputs(config: "RunConfig") -> None:
    """Compare model, questions and baselines with the manifests beside them.

    Raises:
        ConfigurationError: one is missing, or differs from its manifest.
    """
    if not config.model.is_dir():
        raise ConfigurationError(f"there is no model folder {config.model}")
    verify_input(config.model)
    sets = [source.questions for source in config.question_sets.values()]
    for questions in (*sets, config.validation.questions):
        if questions is not None and questions.is_file():
            verify_input(questions)
    for baselines in (config.reward.baselines, config.validation.baseline_file):
        if baselines is not None:
            verify_input(baselines)


def is_finished(output: Path, steps: int) -> bool:
    """Whether an earlier process trained the run to its last step and wrote its complete model."""
    try:
        model = verify_folder(RunFolder(output).final)
    except ConfigurationError:
        return False
    return model is not None and int(model.metadata.get("step", -1)) >= steps


def is_run_finished(config: "RunConfig") -> bool:
    """Whether the run was trained to its last step, or ended early, and wrote its complete model."""
    lines = RunFolder(config.output).step_lines()
    return is_finished(config.output, find_last_step(config.validation, config.steps, lines))


def write_model_manifest(folder: Path, run_id: str, step: int, fingerprint: str) -> None:
    """Write the manifest of an exported model."""
    write_artifact(
        folder, Artifact(MODEL_ARTIFACT, metadata={"run_id": run_id, "step": step, "fingerprint": fingerprint})
    )


def _step(line: StepLine) -> int:
    value = line.get("step")
    return value if isinstance(value, int) else 0
