"""Names what a checkpoint belongs to: the data, models and settings without which a run cannot continue from it."""

import hashlib
from collections.abc import Mapping

from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_files import prompting_hash
from services.trainer.checkpoints.checkpoint_store import Checkpoint
from services.trainer.learner.device import describe_adapter
from services.trainer.learner.model_folder import fingerprint_folder
from services.trainer.rollouts.task_source import TaskSource
from services.trainer.settings import RunConfig


def describe_identity(config: RunConfig, source: TaskSource) -> dict[str, str]:
    """Return what must not change between a checkpoint and its resume."""
    # A change of what is listed here makes rewards incomparable, or does not fit the saved state: with larger groups,
    # for example, the finished rollouts of a group would lack members. What is not listed, such as the learning rate,
    # may be changed for a resume.
    baselines = config.reward.baselines
    compared = {"baselines": hashlib.sha256(baselines.read_bytes()).hexdigest()} if baselines else {}
    return {
        **compared,
        "questions": source.fingerprint,
        "mixture": source.shares or "none",
        "curriculum": config.curriculum.describe(),
        "model": prompting_hash(config.model),
        "starting weights": fingerprint_folder(config.model),
        "seed": str(config.seed),
        "temperature": str(config.temperature),
        "reward": config.reward.kind,
        "reward costs": ", ".join(f"{name} {value}" for name, value in sorted(config.reward.costs.items())),
        "overlong penalty": f"{config.overlong_penalty:g}",
        "search gain": _describe_search_gain(config, source),
        "search mode": config.services.retrieval_mode,
        "algorithm": config.algorithm.kind,
        "dtype": config.learner.dtype,
        "adapter": describe_adapter(config.learner.adapter),
        # the fingerprint of a checkpoint is that of what was published
        "published weights": "of the adapter" if config.engine.takes_adapter else "complete",
        "optimizer": config.update.optim.kind,
        "group layout": f"{config.rollouts.groups_per_step} x {config.rollouts.group_size}",
    }


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, str]) -> None:
    """Raises:
    ConfigurationError: the checkpoint belongs to other data, another model or other settings than ``identity``.
    """
    for name, value in identity.items():
        saved = checkpoint.metadata["identity"].get(name, value)  # older checkpoints name less
        if saved != value:
            raise ConfigurationError(
                f"cannot resume {checkpoint.folder}: its {name} was {saved}, now it is {value}; use what the run was "
                "started with, or start a new run"
            )


def _describe_search_gain(config: RunConfig, source: TaskSource) -> str:
    """Return the weight of the process reward, and of what it depends besides the questions' fingerprint."""
    if not config.reward.search_gain:
        return "0"
    gold = hashlib.sha256(repr(source.gold_passages).encode()).hexdigest()
    return f"{config.reward.search_gain:g} of {gold[:16]}"
