"""Verifies a run's inputs against their manifests, and whether the run is finished."""

from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.platform.artifact_manifest import Artifact, verify_folder, verify_input, write_artifact
from services.trainer.run_config import RunConfig
from services.trainer.runs.run_folder import RunFolder

MODEL = "model"


def verify_inputs(config: RunConfig) -> None:
    """Compare model, questions and baselines with the manifests beside them.

    Raises:
        ConfigurationError: one is missing, or differs from its manifest.
    """
    if not config.model.is_dir():
        raise ConfigurationError(f"there is no model folder {config.model}")
    verify_input(config.model)
    if config.questions.is_file():
        verify_input(config.questions)
    if config.reward.baseline_file is not None:
        verify_input(config.reward.baseline_file)


def is_finished(config: RunConfig) -> bool:
    """Whether an earlier process trained the run to its last step and wrote its complete model."""
    folder = RunFolder(config.output)
    try:
        model = verify_folder(folder.final)
    except ConfigurationError:
        return False
    return model is not None and int(model.metadata.get("step", -1)) >= config.steps


def write_model_manifest(folder: Path, run_id: str, step: int, fingerprint: str) -> None:
    """Write the manifest of an exported model."""
    write_artifact(folder, Artifact(MODEL, metadata={"run_id": run_id, "step": step, "fingerprint": fingerprint}))
