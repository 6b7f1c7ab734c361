"""Writes and verifies ``manifest.json``, the checksums of the files that a step produced, and marks fetched folders.

The manifest is written last, so a folder that has one is complete; readers verify it before use. Every step from the
corpus to the served searcher (corpus, questions, model, baseline, evaluation) leaves
``manifest.json`` in its folder:

    {"format", "kind", "key", "created", "inputs": {name: sha256}, "metadata": {..},
     "files": {name: {"bytes", "sha256"}}}

A folder without a manifest was copied there manually: it is used, and the log says that it is not verified. From a
shell: ``python -m searchrl.storage.artifact_manifest verify FOLDER...`` (or ``write KIND FOLDER``).
"""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from searchrl.errors import ConfigurationError
from searchrl.input_files import parse_json
from searchrl.storage.durable_files import (
    FileRecord,
    atomic_write,
    content_key,
    file_record,
    fsync_folders,
    fsync_path,
    sha256_file,
)

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
FORMAT = "searchrl-artifact-1"  # a manifest of another format counts as none
MARKER = ".fetched.json"
"""Says where a folder was fetched from; hidden, so that no manifest lists it."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a step produced, as its manifest says.

    Attributes:
        kind: corpus, questions, model, baseline, evaluation ...
        key: what the content depends on, as a hash; artifacts with equal keys are interchangeable. Empty: not known.
        created: UTC time in ISO 8601; set when the manifest is written.
        inputs: checksums of what it was made from, by name.
        metadata: further facts, such as the step of a model.
    """

    kind: str
    key: str = ""
    created: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One checksum of the complete content."""
        # Of names and checksums only: the time and the metadata of a manifest differ between two runs of the same step.
        return content_key({name: record.sha256 for name, record in sorted(self.files.items())})


def write_artifact(folder: Path, artifact: Artifact, names: Iterable[str] | None = None) -> Artifact:
    """Checksum the files (``names``, or all but hidden ones), and write the manifest.

    Files and the folders that they are in reach the disk (fsync) before the manifest, and the manifest appears by one
    rename: after a crash a manifest never names a file that was lost.
    """
    if names is None:
        # Hidden files are temporary ones (``.name.tmp``) or describe this copy (``.fetched.json``), so they are no
        # content.
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        names = (path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    files: dict[str, FileRecord] = {}
    for name in sorted(set(names) - {MANIFEST_FILE}):
        files[name] = file_record(folder / name)
        fsync_path(folder / name)
    fsync_folders(folder, files)
    created = artifact.created or datetime.now(UTC).isoformat(timespec="seconds")
    complete = Artifact(artifact.kind, artifact.key, created, artifact.inputs, artifact.metadata, files)
    atomic_write(folder / MANIFEST_FILE, json.dumps({"format": FORMAT, **asdict(complete)}, indent=1))
    return complete


def read_artifact(folder: Path) -> Artifact | None:
    """Read the manifest of a folder; None if it has none of this format.

    Raises:
        ConfigurationError: the manifest is damaged.
    """
    path = folder / MANIFEST_FILE
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        # Other programs also write a manifest.json, with other content.
        if content.get("format") != FORMAT:
            return None
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
        rest = {name: content[name] for name in ("kind", "key", "created", "inputs", "metadata")}
        return Artifact(files=files, **rest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is damaged ({error}); run the step that wrote {folder} again") from error


def verify_folder(folder: Path) -> Artifact | None:
    """Compare every file with the manifest; None if the folder has no manifest.

    Raises:
        ConfigurationError: a file is missing, cut off or changed.
    """
    artifact = read_artifact(folder)
    for name, record in (artifact.files if artifact else {}).items():
        _compare(folder / name, record)
    return artifact


def verify_input(path: Path) -> str:
    """Verify an input (a folder, or one file of a folder with a manifest) and return its checksum.

    Without a manifest the input is used as it is, with a warning in the log.

    Raises:
        ConfigurationError: it does not exist, or is not what was written.
    """
    if path.is_dir():
        artifact = verify_folder(path)
        if artifact is None:
            logger.warning("%s has no %s: its content is not verified", path, MANIFEST_FILE)
            return ""
        return artifact.digest
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}; run the step that writes it first")
    artifact = read_artifact(path.parent)
    record = artifact.files.get(path.name) if artifact else None
    if record is None:
        logger.warning("no %s names %s: its content is not verified", MANIFEST_FILE, path)
        return sha256_file(path)
    _compare(path, record)
    return record.sha256


def _compare(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing, though {MANIFEST_FILE} beside it names it; write it again")
    # The size first: it finds a file that was cut off without reading gigabytes.
    if path.stat().st_size != record.bytes or sha256_file(path) != record.sha256:
        raise ConfigurationError(f"{path} does not match its checksum in {MANIFEST_FILE}; write it again")


class FetchedMarker(NamedTuple):
    """Where a folder was fetched from, and the checksum of its content at that time.

    Attributes:
        sha256: empty while the fetch is running.
        revision: the version of the source that was fetched, such as the commit of a hub's repository; empty if the
            source has no versions.
    """

    uri: str
    sha256: str
    revision: str = ""


def write_marker(folder: Path, marker: FetchedMarker) -> None:
    """Write the marker into the folder."""
    # Durable, because the folder gets its name by a later rename, which could otherwise survive a power cut alone.
    atomic_write(folder / MARKER, json.dumps(marker._asdict()))


def read_marker(folder: Path) -> FetchedMarker | None:
    """Read the marker of a folder; None if it has none, or an unreadable one."""
    try:
        content = parse_json((folder / MARKER).read_text())
        return FetchedMarker(str(content["uri"]), str(content["sha256"]), str(content["revision"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_origin(folder: Path) -> str | None:
    """Return the URI that the folder was fetched from; None if it was not fetched."""
    marker = read_marker(folder)
    return marker.uri if marker else None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 verified or written, 2 missing or changed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["verify"] and len(arguments) > 1:
            for name in arguments[1:]:
                if not Path(name).is_dir():
                    raise ConfigurationError(f"there is no folder {name}")
                if verify_folder(Path(name)) is None:
                    raise ConfigurationError(f"{name} has no {MANIFEST_FILE}; write one with: write model {name}")
        elif arguments[:1] == ["write"] and len(arguments) == 3:
            write_artifact(Path(arguments[2]), Artifact(arguments[1]))
        else:
            raise ConfigurationError("usage: verify FOLDER..., or write KIND FOLDER")
    except (ConfigurationError, OSError) as error:
        sys.stderr.write(f"artifact_manifest: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
