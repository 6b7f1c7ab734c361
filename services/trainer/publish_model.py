"""Make a trained model one that can be served: ``python -m services.trainer.publish_model --run DIR --models DIR``.

The model is copied to ``MODELS/NAME-step-000060``, a folder that never changes afterwards, so that a deployment can
roll back to the previous model; ``MODELS/NAME-latest`` points to the newest.
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.platform.processes import exit_on_sigterm, write_termination_message
from searchrl.storage.artifact_manifest import Artifact, read_artifact, verify_folder, write_artifact
from searchrl.storage.durable_files import rename_durably
from services.trainer.runs.run_folder import MODEL_ARTIFACT, RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunModel:
    """A model of a run: its manifest, and a function that writes it into a folder."""

    artifact: Artifact
    write: Callable[[Path], None]


def publish(run: Path, models: Path, name: str = "", step: int | None = None, *, best: bool = False) -> Path:
    """Publish the run's final model, or that of a checkpoint (``step``, or the best validated one); return its folder.

    Raises:
        ConfigurationError: the run has no such model, it is damaged, or another model has the same name.
    """
    folder = RunFolder(run)
    step = _find_best(folder) if best else step
    source = _checkpoint(folder, step) if step is not None or not folder.final.is_dir() else _final(folder)
    name = name or run.name
    # six digits, so that names sort by step
    target = models / f"{name}-step-{int(source.artifact.metadata['step']):06d}"
    published = verify_folder(target) if target.is_dir() else None
    if published is None:
        _write(source, target)
    # A Job repeats its command after a failure: the same model under the same name is a success.
    elif published.metadata.get("fingerprint") != source.artifact.metadata.get("fingerprint"):
        raise ConfigurationError(f"{target} holds another model: choose another --name, or remove it")
    _point(models / f"{name}-latest", target.name)
    return target


def _find_best(folder: RunFolder) -> int:
    from services.trainer.checkpoints.checkpoint_store import CheckpointStore

    step = CheckpointStore(folder.checkpoints).best_step()
    if step is None:
        raise ConfigurationError(f"{folder.checkpoints} names no best checkpoint: the run was not validated")
    return step


def _final(folder: RunFolder) -> RunModel:
    artifact = verify_folder(folder.final)
    if artifact is None:
        raise ConfigurationError(f"{folder.final} has no manifest: the run's last step is not finished")

    def copy(target: Path) -> None:
        # only what the manifest lists, because only that was verified
        for name in artifact.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.final / name, target / name)

    return RunModel(artifact, copy)


def _checkpoint(folder: RunFolder, step: int | None) -> RunModel:
    # Imported here and below, because publishing the final model needs neither torch, which takes seconds to import,
    # nor safetensors.
    from services.trainer.checkpoints.checkpoint_store import CheckpointStore

    store = CheckpointStore(folder.checkpoints)
    checkpoint = store.newest_intact() if step is None else store.load(step)
    if checkpoint is None:
        raise ConfigurationError(f"{folder.path} has no checkpoint")

    def export(target: Path) -> None:
        from services.trainer.learner.device import LearnerSettings
        from services.trainer.learner.learner import Learner
        from services.trainer.settings import load_run_config

        # On the CPU: weights are only read and written, so publishing takes no GPU from a run. Of the run's
        # settings only the adapter applies; its attention, for one, may exist on a GPU alone.
        config = load_run_config(folder.config)
        learner = Learner.from_folder(config.model, LearnerSettings(adapter=config.learner.adapter), config.seed)
        learner.load(checkpoint.folder / "learner")
        learner.export(target)

    facts = {"run_id": folder.path.name, "step": checkpoint.step, "fingerprint": checkpoint.metadata["fingerprint"]}
    return RunModel(Artifact(MODEL_ARTIFACT, metadata=facts), export)


def _write(source: RunModel, target: Path) -> None:
    # The copy is complete, and compared with the source, before the rename gives it its name: nobody can serve a part.
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    source.write(part)
    artifact = write_artifact(part, Artifact(MODEL_ARTIFACT, metadata=source.artifact.metadata))
    for name, record in source.artifact.files.items():
        if artifact.files[name] != record:
            raise ConfigurationError(f"{name} was damaged while it was copied to {part}; publish again")
    shutil.rmtree(target, ignore_errors=True)  # it has no manifest, so it was not published
    rename_durably(part, target)  # before the link: it never points to a folder that a power cut could lose


def _point(link: Path, name: str) -> None:
    if link.exists() and not link.is_symlink():
        raise ConfigurationError(f"{link} exists and is not a symbolic link to a model")
    # A relative target: the volume may be mounted at another path where the model is served.
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(name)
    rename_durably(part, link)  # atomic: at every moment the name points to a complete model


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 published, now or before; 2 the run or the folder cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.publish_model", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--models", type=Path, required=True, help="folder of published models")
    parser.add_argument("--name", default="", help="first part of the folder's name; default: the run's name")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--step", type=int, help="the checkpoint of this step; default: the final model")
    chosen.add_argument("--best", action="store_true", help="the checkpoint of the best validation")
    arguments = parser.parse_args(argv)
    try:
        folder = publish(arguments.run, arguments.models, arguments.name, arguments.step, best=arguments.best)
    except ConfigurationError as error:
        write_termination_message(f"publish_model: {error}")
        return 2
    published = read_artifact(folder)
    fingerprint = published.metadata.get("fingerprint", "") if published else ""
    sys.stdout.write(f"published {folder} (fingerprint {str(fingerprint)[:12]}); serve it with\n")
    sys.stdout.write(f"  helm upgrade RELEASE CHART --reuse-values --set engines.searcher.model={folder}\n")
    return 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
