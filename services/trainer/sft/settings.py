"""Defines and loads the configuration of a supervised run: YAML file and ``--set``, checked once at start."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from searchrl.platform.settings import Section, merge, parse_assignment, read_yaml, validate
from services.trainer.algorithms.sft import SftSettings
from services.trainer.learner.device import LearnerSettings
from services.trainer.trackers.build import TrackerSettings


class SftCheckpointSettings(Section):
    """When to save, and how much to keep."""

    every: NonNegativeInt = Field(default=100, description="Steps between checkpoints; 0: only at the end.")
    keep: PositiveInt = Field(default=3, description="Checkpoints kept.")


class SftConfig(Section):
    """One supervised run."""

    run_id: str = Field(default="", description="Name of the run; empty: the name of its folder.")
    model: Path = Field(description="Folder of the model to start from.")
    data: tuple[Path, ...] = Field(min_length=1, description="Files of rows: JSON lines, a JSON array or parquet.")
    output: Path = Field(description="Run folder; a run that it holds is continued.")
    seed: int = Field(default=0, description="Order of the rows, and an adapter's first weights.")
    max_tokens: PositiveInt | None = Field(
        default=None, description="Longer rows are left out and counted; None: the model's context."
    )
    trained_messages: Literal["all", "last"] = Field(
        default="all", description="Which of the assistant's messages of a row are trained."
    )
    training: SftSettings = Field(default=SftSettings(), description="Passes, batches, loss and optimizer.")
    learner: LearnerSettings = Field(default=LearnerSettings(), description="Device and memory of the learner.")
    checkpoints: SftCheckpointSettings = Field(default=SftCheckpointSettings(), description="Checkpoints.")
    logging: TrackerSettings = Field(default=TrackerSettings(), description="Where the steps are shown.")

    @field_validator("data", mode="before")
    @classmethod
    def _accept_one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @property
    def name(self) -> str:
        return self.run_id or self.output.name


def load_sft_config(path: Path | None, assignments: Sequence[str] = ()) -> SftConfig:
    """Merge the file and the assignments, of which later ones win, and check the result.

    Raises:
        ConfigurationError: a setting is invalid, or unknown (the message names the nearest one).
    """
    values = read_yaml(path) if path is not None else {}
    for assignment in assignments:
        values = merge(values, parse_assignment(assignment))
    return validate(SftConfig, values)


def describe_sft_plan(config: SftConfig) -> str:
    """Describe model, data, optimizer and files of a run, one line each."""
    training, optim = config.training, config.training.optim
    lines = [
        f"run {config.name}: supervised training of {config.model}, seed {config.seed}",
        f"data: {', '.join(map(str, config.data))}",
        f"trained: {config.trained_messages} of the assistant's messages, {training.epochs:g} epochs, "
        f"{training.batch_rows} rows per optimizer step",
        f"optimizer: {optim.kind} at {optim.learning_rate:g}",
        f"learner: {config.learner.device}, {config.learner.dtype}, adapter {config.learner.adapter.kind}",
        f"files: {config.output}, a checkpoint every {config.checkpoints.every} steps, {config.checkpoints.keep} kept",
    ]
    return "\n".join(lines) + "\n"
