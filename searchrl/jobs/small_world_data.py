"""Write a small world to the folders that jobs read: ``python -m searchrl.jobs.small_world_data --data /data``."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.platform.processes import exit_on_sigterm, write_termination_message
from searchrl.small_world.files import WARM_START_FOLDER, write_small_world
from searchrl.storage.artifact_manifest import Artifact, read_artifact, verify_folder, write_artifact
from searchrl.storage.durable_files import content_key, is_disk_full

SPLITS = ("train", "test", "large")
MODEL_SUFFIX = "-searcher"
FORMAT = 1
"""Part of the content key: a new number makes folders of an older layout count as another world."""


def write_data(data: Path, name: str, sizes: dict[str, int]) -> bool:
    """Write ``corpora/NAME``, ``questions/NAME`` and ``models/NAME-searcher``; return False if they exist already.

    The manifests are written last, so a folder without one is unfinished. ``part`` exists from the first file to the
    last manifest: it distinguishes an interrupted attempt, which is repeated, from files of someone else.

    Raises:
        ConfigurationError: the folders of this name hold another world, damaged files, or files of someone else.
    """
    corpus, questions, model = folders = _folders(data, name)
    key = content_key({"format": FORMAT, **sizes})
    if all(_is_written(folder, key) for folder in folders):
        return False
    part = data / f".small-world-{name}"
    if not part.exists():
        _refuse_foreign(folders)
    shutil.rmtree(part, ignore_errors=True)
    files = write_small_world(part, **sizes)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    # ``part`` is on the same volume, so each ``replace`` is a rename: no reader sees a part of a file. The model is
    # copied, because its source belongs to the installed package.
    files.corpus.replace(corpus / files.corpus.name)
    for split in SPLITS:
        (part / f"{split}.jsonl").replace(questions / f"{split}.jsonl")
    for path in WARM_START_FOLDER.iterdir():
        if path.is_file():
            shutil.copyfile(path, model / path.name)
    for folder, kind in zip(folders, ("corpus", "questions", "model"), strict=True):
        write_artifact(folder, Artifact(kind, key=key))
    shutil.rmtree(part, ignore_errors=True)
    return True


def _refuse_foreign(folders: Sequence[Path]) -> None:
    for folder in folders:
        if read_artifact(folder) is None and folder.is_dir() and any(folder.iterdir()):
            raise ConfigurationError(
                f"{folder} holds files that this command did not write: choose another --name, or remove it"
            )


def _folders(data: Path, name: str) -> tuple[Path, Path, Path]:
    return data / "corpora" / name, data / "questions" / name, data / "models" / f"{name}{MODEL_SUFFIX}"


def _is_written(folder: Path, key: str) -> bool:
    artifact = verify_folder(folder)
    if artifact is not None and artifact.key != key:
        raise ConfigurationError(f"{folder} holds another world: choose another --name, or remove it")
    return artifact is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 written or existing already, 1 no space left, 2 cannot be written."""
    arguments = vars(_parser().parse_args(argv))
    data, name = arguments.pop("data"), arguments.pop("name")
    try:
        written = write_data(data, name, arguments)
    except ConfigurationError as error:
        write_termination_message(f"small_world_data: {error}")
        return 2
    except OSError as error:
        is_full = is_disk_full(error)
        advice = "make room or enlarge the volume, then try again" if is_full else "make it writable for this user"
        write_termination_message(f"small_world_data: cannot write into {data}: {error.strerror}; {advice}")
        return 1 if is_full else 2
    sys.stdout.write(f"small world {name}: {'written' if written else 'exists already'}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m searchrl.jobs.small_world_data", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="root of the shared storage")
    add("--name", default="small-world", help="name of the corpus, the questions and the model")
    add("--seed", type=int, default=1000, help="another seed, another set of worlds; the warm start was made from 0")
    add("--train-worlds", type=int, default=100)
    add("--test-worlds", type=int, default=3)
    add("--questions-per-world", type=int, default=150)
    add("--large-questions", type=int, default=300)
    return parser


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
