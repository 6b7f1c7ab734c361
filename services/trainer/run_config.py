"""What does one training run do? The YAML file, its presets and ``--set``, checked once at start."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from searchrl.errors import ConfigurationError
from searchrl.platform.nearest_name import unknown_name
from searchrl.platform.service_settings import merge, parse_assignment, read_yaml, validate
from services.trainer.algorithms.advantages import GroupAdvantage
from services.trainer.learner.policy_update import UpdateSettings
from services.trainer.learner.settings import LearnerSettings
from services.trainer.rewards.build_reward import needs_generator
from services.trainer.rewards.reward_settings import RewardSettings
from services.trainer.rollouts.rollout_settings import RolloutSettings

PRESETS = Path(__file__).parent / "presets"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServiceTargets(_Section):
    """Where the other services are (gRPC, "host:port")."""

    retriever: str = Field(default="127.0.0.1:9090", description="The retriever.")
    generator: str | None = Field(default=None, description="The generator; needed by rewards that answer and judge.")
    key_file: Path | None = Field(default=None, description="File with the API key for both.")
    timeout_seconds: float = Field(default=60.0, gt=0, description="Deadline of one call.")
    retrieval_mode: str = Field(default="", description="Search mode; empty: the retriever's default.")


class EngineSettings(_Section):
    """What samples the rollouts' tokens."""

    kind: Literal["torch", "vllm"] = Field(default="torch", description="torch: in this process; vllm: a server.")
    slots: PositiveInt = Field(default=256, description="torch: rollouts decoded at once.")
    threads: PositiveInt = Field(default=1, description="torch: threads of the engine.")
    url: str | None = Field(default=None, description="vllm: base URL of the server.")
    model: str = Field(default="policy", description="vllm: the model's name there.")
    logprob_tolerance: NonNegativeFloat | None = Field(
        default=0.01, description="Mean difference in nats to the learner that stops a synchronous run; None: no check."
    )

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if (self.kind == "vllm") != (self.url is not None):
            raise ValueError("url belongs to kind vllm, which cannot do without it")
        return self


class AlgorithmSettings(_Section):
    """How rewards become advantages."""

    kind: Literal["grpo", "ppo"] = Field(default="grpo", description="grpo: group statistics; ppo: a critic and GAE.")
    advantage: GroupAdvantage = Field(default="group_mean", description="grpo: baseline and scale of a group.")
    scale: float = Field(default=1.0, gt=0, description="grpo: factor of all advantages.")
    drop_zero_variance: bool = Field(default=True, description="grpo: groups of equal rewards leave the batch.")


class CheckpointSettings(_Section):
    """When to save, and how much to keep."""

    every: NonNegativeInt = Field(default=1, description="Steps between checkpoints; 0: only at the end.")
    keep: PositiveInt = Field(default=3, description="Checkpoints kept.")


class LoggingSettings(_Section):
    """What is written into the run folder besides ``metrics.jsonl``."""

    trajectories_every: NonNegativeInt = Field(default=1, description="Steps between files of trajectories; 0: none.")
    tensorboard: bool = Field(default=True, description="Write TensorBoard event files.")


class RunConfig(_Section):
    """One training run."""

    run_id: str = Field(default="", description="Name of the run; empty: the name of its folder.")
    model: Path = Field(description="Folder of the searcher to start from, with searcher.json.")
    questions: Path = Field(description="Training questions: JSON lines, a JSON array or parquet.")
    output: Path = Field(description="Run folder; a run that it holds is continued.")
    seed: int = Field(default=0, description="Seed of everything that is random.")
    steps: PositiveInt = Field(default=60, description="Training steps.")
    temperature: float | None = Field(default=None, gt=0, description="Sampling temperature; None: the searcher's own.")
    services: ServiceTargets = Field(default=ServiceTargets(), description="The other services.")
    engine: EngineSettings = Field(default=EngineSettings(), description="What samples tokens.")
    rollouts: RolloutSettings = Field(default=RolloutSettings(), description="Groups, staleness, retries.")
    reward: RewardSettings = Field(default=RewardSettings(), description="What rollouts are worth.")
    algorithm: AlgorithmSettings = Field(default=AlgorithmSettings(), description="Advantages.")
    update: UpdateSettings = Field(default=UpdateSettings(), description="Losses and optimisers.")
    learner: LearnerSettings = Field(default=LearnerSettings(), description="Device and memory of the learner.")
    checkpoints: CheckpointSettings = Field(default=CheckpointSettings(), description="Checkpoints.")
    logging: LoggingSettings = Field(default=LoggingSettings(), description="Files in the run folder.")

    @property
    def name(self) -> str:
        return self.run_id or self.output.name

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.rollouts.group_size < 2 and self.algorithm.kind == "grpo":
            raise ValueError("grpo compares the rollouts of a group: rollouts.group_size must be at least 2")
        if needs_generator(self.reward) and self.services.generator is None:
            raise ValueError(f"reward kind {self.reward.kind} needs services.generator, the address of a generator")
        if self.engine.kind == "vllm" and self.rollouts.max_staleness > 0:
            raise ValueError(
                "a vllm engine does not name the policy version of every token: set rollouts.max_staleness to 0"
            )
        several_steps = self.update.mini_batches * self.update.epochs > 1
        if self.rollouts.max_staleness > 0 and several_steps and self.update.loss.anchor == "behaviour":
            raise ValueError("stale rollouts and several optimiser steps need update.loss.anchor proximal")
        return self


def preset_names() -> list[str]:
    """Names that ``preset`` accepts."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_run_config(path: Path | None, assignments: Sequence[str] = ()) -> RunConfig:
    """Merge the preset that the file (or ``--set preset=..``) names, the file and the assignments, and check them.

    Raises:
        ConfigurationError: one sentence; an unknown name comes with the nearest known one.
    """
    values = read_yaml(path) if path is not None else {}
    for assignment in assignments:
        values = merge(values, parse_assignment(assignment))
    preset = values.pop("preset", None)
    if preset is not None:
        values = merge(_read_preset(str(preset)), values)
    return validate(RunConfig, values)


def _read_preset(name: str) -> Mapping[str, Any]:
    if name not in preset_names():
        raise ConfigurationError(unknown_name("preset", name, preset_names()))
    return read_yaml(PRESETS / f"{name}.yaml")
