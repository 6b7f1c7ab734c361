"""Defines, loads and describes the configuration of a run: YAML file, preset and ``--set``, checked once at start."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from searchrl.errors import ConfigurationError, unknown_name
from searchrl.platform.settings import Section, merge, parse_assignment, read_yaml, validate
from services.trainer.algorithms import ALGORITHMS, AlgorithmSettings
from services.trainer.algorithms.base import UpdateSettings
from services.trainer.algorithms.grpo import GroupSettings, GrpoSettings
from services.trainer.algorithms.ppo import PpoSettings
from services.trainer.engines import ENGINES, EngineSettings
from services.trainer.engines.torch_engine import TorchEngineSettings
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.rewards import REWARDS, RewardSettings
from services.trainer.rewards.base import RewardBase
from services.trainer.rewards.generation import GenerationAccuracySettings
from services.trainer.rollouts.curriculum import CurriculumSettings
from services.trainer.rollouts.group import RolloutSettings
from services.trainer.rollouts.mixture import MixtureSource, check_mixture
from services.trainer.trackers.build import TrackerSettings
from services.trainer.validation.settings import ValidationSettings

PRESETS = Path(__file__).parent / "presets"
KINDS: Mapping[str, Mapping[str, type[Section]]] = {
    "engine": {kind: settings for kind, (_, settings) in ENGINES.items()},
    "algorithm": {kind: settings for kind, (_, settings) in ALGORITHMS.items()},
    "reward": {kind: settings for kind, (_, settings) in REWARDS.items()},
}
"""The sections that are unions keyed on their kind: the settings of each."""


class ServiceTargets(Section):
    """Where the other services are (gRPC, "host:port")."""

    retriever: str = Field(default="127.0.0.1:9090", description="The retriever.")
    generator: str | None = Field(default=None, description="The generator; needed by rewards that answer and judge.")
    key_file: Path | None = Field(default=None, description="File with the API key for both.")
    timeout_seconds: float = Field(default=60.0, gt=0, description="Deadline of one call.")
    retrieval_mode: str = Field(default="", description="Search mode; empty: the retriever's default.")


class WatchdogSettings(Section):
    """When a run that gets nowhere ends; see also ``rollouts.stall_seconds``."""

    idle_steps: NonNegativeInt = Field(
        default=30, description="Steps in a row without an optimizer step that end the run; 0: any number."
    )
    update_seconds: NonNegativeFloat = Field(default=7200.0, description="Longest update of the learner; 0: any time.")


class SelfRepairSettings(Section):
    """When a run that diverges or collapses returns to an earlier checkpoint, with lower learning rates."""

    # With the default factor, the third rollback leaves an eighth of the rate. A run that diverges even then has
    # another cause.
    rollbacks: NonNegativeInt = Field(default=3, description="Most rollbacks of a run; the next trouble ends it.")
    rate_factor: float = Field(default=0.5, gt=0, le=1, description="Factor of all learning rates at each rollback.")
    # Off: rewards of a run on hard questions may fall for long and recover, and a rollback costs every step since.
    collapse_steps: NonNegativeInt = Field(
        default=0,
        description="Steps in a row of a collapsed policy that cause a rollback; 0: only gradients and losses.",
    )
    collapse_drop: float = Field(
        default=0.5, gt=0, lt=1, description="Share of its best that the reward, or the validation, must lose for that."
    )
    collapse_window: PositiveInt = Field(default=10, description="Steps of the mean training reward.")


class CheckpointSettings(Section):
    """When to save, and how much to keep."""

    every: NonNegativeInt = Field(default=1, description="Steps between checkpoints; 0: only at the end.")
    keep: PositiveInt = Field(default=3, description="Newest checkpoints kept, besides that of the best validation.")
    background: bool = Field(
        default=True, description="Write while the next step runs, from a copy of the state in main memory."
    )


class LoggingSettings(TrackerSettings):
    """What is recorded besides ``metrics.jsonl``, and where it is shown."""

    trajectories_every: NonNegativeInt = Field(default=1, description="Steps between files of trajectories; 0: none.")
    samples: int = Field(default=4, ge=0, le=100, description="Trajectories of each step that trackers show.")


class RunConfig(Section):
    """One training run."""

    run_id: str = Field(default="", description="Name of the run; empty: the name of its folder.")
    model: Path = Field(description="Folder of the searcher to start from, with searcher.json.")
    questions: Path | None = Field(
        default=None, description="Training questions: JSON lines, a JSON array, CSV or parquet; unless mixture is set."
    )
    mixture: dict[str, MixtureSource] = Field(
        default={}, description="Several sets instead, by a name of your choice: questions, and weight (1 by default)."
    )
    curriculum: CurriculumSettings = Field(
        default=CurriculumSettings(), description="Questions that rest because the policy always or never solves them."
    )
    output: Path = Field(description="Run folder; a run that it holds is continued.")
    seed: int = Field(default=0, description="Seed of everything that is random.")
    steps: PositiveInt = Field(default=60, description="Training steps.")
    temperature: float | None = Field(default=None, gt=0, description="Sampling temperature; None: the searcher's own.")
    services: ServiceTargets = Field(default=ServiceTargets(), description="The other services.")
    engine: EngineSettings = Field(
        default=TorchEngineSettings(), discriminator="kind", description="What samples tokens."
    )
    rollouts: RolloutSettings = Field(default=RolloutSettings(), description="Groups, staleness, retries.")
    watchdog: WatchdogSettings = Field(default=WatchdogSettings(), description="When a run that gets nowhere ends.")
    self_repair: SelfRepairSettings = Field(
        default=SelfRepairSettings(), description="Return to an earlier checkpoint with lower learning rates."
    )
    reward: RewardSettings = Field(
        default=GenerationAccuracySettings(), discriminator="kind", description="What rollouts are worth."
    )
    algorithm: AlgorithmSettings = Field(
        default=GrpoSettings(), discriminator="kind", description="How rewards train the policy."
    )
    update: UpdateSettings = Field(default=UpdateSettings(), description="Passes and optimizer steps.")
    learner: LearnerSettings = Field(default=LearnerSettings(), description="Device and memory of the learner.")
    validation: ValidationSettings = Field(
        default=ValidationSettings(), description="Validation on questions that are not trained on."
    )
    checkpoints: CheckpointSettings = Field(default=CheckpointSettings(), description="Checkpoints.")
    logging: LoggingSettings = Field(default=LoggingSettings(), description="Trajectories and trackers.")

    @property
    def name(self) -> str:
        return self.run_id or self.output.name

    @property
    def question_sets(self) -> dict[str, MixtureSource]:
        """The sets of training questions by name; the only one of a plain run has no name."""
        return self.mixture or ({"": MixtureSource(questions=self.questions)} if self.questions is not None else {})

    @property
    def overlong_penalty(self) -> float:
        """What is subtracted from the reward of a rollout that samples as many tokens as it may."""
        given = self.reward.overlong.penalty
        return self.algorithm.overlong_penalty if given is None else given

    @property
    def is_decoupled(self) -> bool:
        """Whether the old policy of the ratio must be another one than the sampler."""
        return self.rollouts.max_staleness > 0 and self.update.mini_batches * self.update.epochs > 1

    @property
    def uses_ray(self) -> bool:
        """Whether a part of the run is in Ray actors."""
        return bool(self.learner.places() or self.engine.places())

    @property
    def validation_reward(self) -> RewardSettings:
        """The reward of the training, with the baselines of the validation questions."""
        file = self.validation.baseline_file
        return self.reward.with_baselines(file) if file is not None else self.reward

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.questions is None) != bool(self.mixture):
            raise ValueError("name the training questions once: either questions or mixture")
        check_mixture(self.mixture)
        if self.rollouts.group_size < 2 and self.algorithm.compares_rollouts:
            raise ValueError(
                f"{self.algorithm.kind} compares the rollouts of a group: rollouts.group_size must be at least 2"
            )
        if self.rollouts.groups_per_step * self.rollouts.group_size < 2 and self.algorithm.normalizes_batch:
            raise ValueError(
                f"{self.algorithm.kind} normalizes over the rollouts of a step: with one of them every advantage is 0"
            )
        if self.reward.needs_generator and self.services.generator is None:
            raise ValueError(f"reward kind {self.reward.kind} needs services.generator, the address of a generator")
        if self.reward.search_gain and not self.algorithm.credits_turns:
            raise ValueError(
                f"{self.algorithm.kind} gives all tokens of a rollout one advantage, so reward.search_gain would reach "
                "no turn: set it to 0, or choose another algorithm.kind"
            )
        if self.engine.takes_adapter and self.learner.adapter.kind == "none":
            raise ValueError(
                "engine.weight_transfer.backend lora_adapter sends an adapter alone, and learner.adapter.kind none "
                "trains every weight: set learner.adapter.kind to lora or qlora, or use shared_fs"
            )
        if self.validation.baseline_file is not None and self.reward.baselines is None:
            raise ValueError(f"validation.baseline_file: reward.kind {self.reward.kind} compares with no baselines")
        # From the second optimizer step on, the clip range has to bound the move away from the policy before the first.
        # Relative to a stale sampler it would bound something else: tokens that other updates have moved out of the
        # range already lose their gradient.
        if self.is_decoupled and self.algorithm.loss.old_policy == "behavior":
            raise ValueError("stale rollouts and several optimizer steps need algorithm.loss.old_policy proximal")
        return self


def preset_names() -> list[str]:
    """Return the names that ``preset`` accepts."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_run_config(path: Path | None, assignments: Sequence[str] = ()) -> RunConfig:
    """Merge the preset that the file (or ``--set preset=..``) names, the file and the assignments; check the result.

    Raises:
        ConfigurationError: a setting is invalid, unknown (the message names the nearest one), or not used by the chosen
            kinds.
    """
    values = read_yaml(path) if path is not None else {}
    for assignment in assignments:
        values = merge(values, parse_assignment(assignment))
    preset = values.pop("preset", None)
    # What the user gave, without the preset: only that can be a mistake. A preset may name, for instance, a clip range
    # that the user's choice of ``algorithm.loss.policy`` leaves unused.
    given = values
    if preset is not None:
        values = _merge_preset(_read_preset(str(preset)), values)
    # Before pydantic, whose union needs the kind in the input, and whose error for a setting of another kind would not
    # name that kind.
    for name, members in KINDS.items():
        values[name] = _check_kind(name, members, values.get(name, {}))
    config = _choose_old_policy(validate(RunConfig, values))
    check_settings_have_effect(config, given)
    return config


def _choose_old_policy(config: RunConfig) -> RunConfig:
    """Return the configuration with the old policy of the ratio that a run of its staleness needs."""
    if config.algorithm.loss.old_policy is not None:
        return config
    chosen = "proximal" if config.is_decoupled else "behavior"
    loss = config.algorithm.loss.model_copy(update={"old_policy": chosen})
    return config.model_copy(update={"algorithm": config.algorithm.model_copy(update={"loss": loss})})


def check_settings_have_effect(config: RunConfig, given: Mapping[str, Any]) -> None:
    """Raises:
    ConfigurationError: a given setting is never read by the reward, the algorithm or the optimizers of this run.
    """
    defaults = SimpleNamespace(
        algorithm=type(config.algorithm)(),
        update=UpdateSettings(),
        reward=RewardBase(),
        curriculum=CurriculumSettings(),
    )
    for path, why in _without_effect(config).items():
        at: Any = given
        for name in path.split("."):
            at = at.get(name) if isinstance(at, Mapping) else None
        read = attrgetter(path)
        # compare with the default, since run.yaml of a resumed run names every setting
        if at is not None and read(config) != read(defaults):
            raise ConfigurationError(f"{path} has no effect: {why}; leave it out")


def _merge_preset(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a preset and the given settings; a section of another kind replaces the preset's as a unit."""
    # Merged key by key, ``value_optim`` of the preset s3 would remain under ``algorithm.kind: grpo``, an error there.
    kept = dict(preset)
    for name in KINDS:
        section = given.get(name)
        kind = section.get("kind") if isinstance(section, Mapping) else None
        if kind not in (None, preset.get(name, {}).get("kind")):
            kept.pop(name, None)
    return merge(kept, given)


def _check_kind(section_name: str, members: Mapping[str, type[Section]], section: Any) -> Any:
    """Return the section with its kind, by default the first.

    Raises:
        ConfigurationError: the kind is unknown, or a setting belongs to another kind.
    """
    if not isinstance(section, Mapping):
        return section  # the check of all values reports it
    kind = section.get("kind", next(iter(members)))
    if not isinstance(kind, str) or kind not in members:
        raise ConfigurationError(unknown_name(f"{section_name}.kind", str(kind), list(members)))
    for name in section:
        others = [other for other, settings in members.items() if name in settings.model_fields]
        if others and kind not in others:
            listed = " or ".join(filter(None, (", ".join(others[:-1]), others[-1])))
            raise ConfigurationError(
                f"{section_name}.{name} belongs to {section_name}.kind {listed}, and this run's is {kind}; leave it out"
            )
    return {**section, "kind": kind}


def _without_effect(config: RunConfig) -> dict[str, str]:
    """Return the settings that this run does not read, each with the reason."""
    optimizers = {"update.optim": config.update.optim}
    optimizers |= {f"algorithm.{name}": optim for name, optim in config.algorithm.optimizers.items()}
    unused = _without_effect_on_loss(config.algorithm.loss) | _without_effect_on_optimizers(optimizers)
    if isinstance(config.algorithm, GroupSettings) and not config.algorithm.dynamic_sampling:
        unused["algorithm.max_sample_batches"] = "algorithm.dynamic_sampling is false"
    if isinstance(config.algorithm, PpoSettings):
        unused |= _without_effect_on_critic(config.algorithm)
    if not config.curriculum.window:
        names = ("curriculum.longest_rest", "curriculum.min_active")
        unused |= dict.fromkeys(names, "curriculum.window is 0")
    if not config.overlong_penalty:
        names = ("reward.overlong.max_tokens", "reward.overlong.buffer_tokens")
        unused |= dict.fromkeys(names, "reward.overlong.penalty is 0")
    return unused


def _without_effect_on_loss(loss: LossSettings) -> dict[str, str]:
    unused: dict[str, str] = {}
    if loss.reduction != "seq_sum_const":
        unused["algorithm.loss.aggregation_constant"] = f"algorithm.loss.aggregation is {loss.reduction}"
    if loss.policy in ("reinforce", "cross_entropy"):  # without a ratio
        names = ("algorithm.loss.clip_low", "algorithm.loss.clip_high", "algorithm.loss.dual_clip")
        unused |= dict.fromkeys(names, f"algorithm.loss.policy is {loss.policy}")
    elif loss.policy == "cispo":
        unused["algorithm.loss.dual_clip"] = "algorithm.loss.policy is cispo"
    if loss.old_policy != "proximal" and loss.policy != "reinforce":
        unused["algorithm.loss.importance_ratio_cap"] = f"algorithm.loss.old_policy is {loss.old_policy}"
    if not loss.kl_coefficient:
        unused["algorithm.loss.kl_estimator"] = "algorithm.loss.kl_coefficient is 0"
    if not loss.llds_coefficient:
        unused["algorithm.loss.llds_threshold"] = "algorithm.loss.llds_coefficient is 0"
    return unused


def _without_effect_on_critic(ppo: PpoSettings) -> dict[str, str]:
    unused: dict[str, str] = {}
    if not ppo.gae.whiten:
        unused["algorithm.gae.min_std"] = "algorithm.gae.whiten is false"
    if ppo.value_loss.aggregation != "seq_sum_const":
        unused["algorithm.value_loss.aggregation_constant"] = (
            f"algorithm.value_loss.aggregation is {ppo.value_loss.aggregation}"
        )
    return unused


def _without_effect_on_optimizers(optimizers: Mapping[str, OptimSettings]) -> dict[str, str]:
    unused: dict[str, str] = {}
    for path, optim in optimizers.items():
        if optim.kind != "muon":
            names = (f"{path}.muon_learning_rate", f"{path}.muon_momentum")
            unused |= dict.fromkeys(names, f"{path}.kind is {optim.kind}")
    return unused


def _read_preset(name: str) -> Mapping[str, Any]:
    if name not in preset_names():
        raise ConfigurationError(unknown_name("preset", name, preset_names()))
    return read_yaml(PRESETS / f"{name}.yaml")


def describe_plan(config: RunConfig) -> str:
    """Describe the sizes, reward, algorithm and files of a run, one line each."""
    rollouts, update = config.rollouts, config.update
    per_step = rollouts.groups_per_step * rollouts.group_size
    optimizer_steps = update.mini_batches * update.epochs
    mode = (
        "strictly synchronous" if rollouts.max_staleness == 0 else f"at most {rollouts.max_staleness} versions behind"
    )
    overlong = f", less up to {config.overlong_penalty:g} if overlong" if config.overlong_penalty else ""
    lines = [
        f"run {config.name}: {config.steps} steps from {config.model}, seed {config.seed}",
        f"questions: {', '.join(f'{name} {one.questions}'.lstrip() for name, one in config.question_sets.items())}",
        f"each step: {rollouts.groups_per_step} questions x {rollouts.group_size} rollouts = {per_step}, {mode}",
        f"reward: {config.reward.kind}{config.reward.describe()}{overlong}",
        f"algorithm: {config.algorithm.kind}, {optimizer_steps} optimizer steps of {update.optim.kind} "
        f"at {update.optim.learning_rate}, loss {config.algorithm.loss.policy}",
        f"services: retriever {config.services.retriever}, generator {config.services.generator or 'none'}",
        f"engine: {config.engine.kind}; learner: {config.learner.device}, {config.learner.dtype}",
        f"files: {config.output}, a checkpoint every {config.checkpoints.every} steps, {config.checkpoints.keep} kept",
    ]
    if config.validation.questions is not None:
        lines.insert(2, f"validation: {_describe_validation(config.validation)}")
    return "\n".join(lines) + "\n"


def _describe_validation(settings: ValidationSettings) -> str:
    every = f", every {settings.every} steps" if settings.every else ""
    stop = f", ends after {settings.patience} without an improvement" if settings.patience else ""
    return f"{settings.questions}, at the start{every} and at the end, best by {settings.metric}{stop}"
