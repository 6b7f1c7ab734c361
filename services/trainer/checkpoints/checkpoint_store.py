"""Writes and reads checkpoints so that a crash never damages the newest complete one.

A checkpoint is written to ``step_N.tmp``, described by a manifest of checksums, flushed to disk and renamed to
``step_N``; only then does the file ``latest`` name it. If a process is killed at any moment, the previous checkpoint
still loads. When a step is saved again, its old folder is named ``step_N.old`` until the new one has its name. Readers
take it where there is no ``step_N``; the next save removes it or renames it back.

Readers here search the folders and verify checksums; ``latest`` is for people and scripts. The file ``best`` names the
checkpoint of the best validation, which is kept beside the newest ones.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from searchrl.errors import ConfigurationError
from searchrl.storage.durable_files import atomic_path, explain_disk_full, fsync_path, rename_durably, sha256_file

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"
FORMAT = 1
"""Version of the manifest's layout; manifests of other versions are refused.

To be raised when a change makes older manifests unreadable.
"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint. ``metadata`` is what the writer gave to ``save``."""

    step: int
    folder: Path
    metadata: Mapping[str, Any]


class DamagedCheckpoint(ConfigurationError):
    """A checkpoint that cannot be read; an older one may be intact."""


class CheckpointStore:
    """The checkpoints of one run in one folder; keeps the newest ``keep``, and the one that is named best.

    More than one is kept so that an older checkpoint remains where the newest turns out to be damaged. Only one process
    may write to the folder at a time.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._folder = folder
        self._keep = keep

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        metadata: Mapping[str, Any] | None = None,
        also_keep: Iterable[int] = (),
    ) -> Checkpoint:
        """Make the folder that ``write`` fills the newest checkpoint; those of later steps are removed.

        ``metadata`` must be JSON; it should name what a resume must match (data set, tokenizer, code version).
        Checkpoints of the steps ``also_keep`` are not removed now.

        Raises:
            Unavailable: the disk is full; older checkpoints are untouched.
        """
        temporary, final = self._folder / f"step_{step}.tmp", self._folder / f"step_{step}"
        what = f"the checkpoint of step {step} in {self._folder}"
        try:
            with explain_disk_full(
                what, "older checkpoints are intact, free some space or keep fewer", SafetensorError
            ):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                write(temporary)
                self._write_manifest(temporary, step, metadata or {})
                # A rename cannot replace a folder that is not empty, so the old one of the same step moves aside.
                if final.exists():
                    shutil.rmtree(self._aside(step), ignore_errors=True)
                    final.rename(self._aside(step))
                # Files were flushed with the manifest. The rename comes after, and its own flush before ``latest``: no
                # name ever points to content that a power cut could lose.
                rename_durably(temporary, final)
                self._point_to(final.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # absent after a success; frees the space of a failed write
        # Damaged ones, from which the writer could not continue: ``_prune`` would keep them instead of the new one.
        self.discard_after(step)
        self._prune(frozenset(also_keep))
        return Checkpoint(step, final, dict(metadata or {}))

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first; they may still be damaged."""
        names = [path.name for path in self._folder.glob("step_*")] if self._folder.is_dir() else []
        return sorted({int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)(?:\.old)?", name))})

    def name_best(self, step: int | None) -> None:
        """Keep the checkpoint of this step, and no other of the older ones; with None, or without it, name none."""
        if step is None or step not in self.steps():
            if step is not None:
                logger.warning("%s has no checkpoint of step %d any more, the best one", self._folder, step)
            (self._folder / BEST).unlink(missing_ok=True)
            return
        with atomic_path(self._folder / BEST, unique=False) as temporary:
            temporary.write_text(f"step_{step}\n")

    def best_step(self) -> int | None:
        """The step of the checkpoint that is named best; None if none is."""
        try:
            name = (self._folder / BEST).read_text()
        except OSError:
            return None
        match = re.fullmatch(r"step_(\d+)\n", name)
        return int(match[1]) if match else None

    def newest_intact(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint whose files all match their checksums; None if there is none.

        Args:
            at_most: step after which checkpoints are not considered.

        Raises:
            ConfigurationError: that one, or one that is newer, has another format.
        """
        for step in reversed(self.steps()):
            if at_most is not None and step > at_most:
                continue
            try:
                return self.load(step)
            except DamagedCheckpoint as problem:
                logger.warning("%s; it is skipped", problem)
        return None

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of one step, verified.

        Raises:
            DamagedCheckpoint: there is none, or it is damaged.
            ConfigurationError: it has another format.
        """
        folder, what = self._folder_of(step), f"the checkpoint of step {step} in {self._folder} cannot be used"
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            # Not damage: it would be skipped, and a rollback to an older checkpoint removes the skipped ones.
            if (written := manifest["format"]) != FORMAT:
                raise ConfigurationError(
                    f"{what}: it has format {written}, this version reads {FORMAT}; use the version that wrote it"
                )
            files, metadata = manifest["files"], manifest["metadata"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{what}: it has no readable {MANIFEST}") from error
        problem = _find_damage(folder, files)
        if problem is not None:
            raise DamagedCheckpoint(f"{what}: {problem}")
        return Checkpoint(step, folder, metadata)

    def _aside(self, step: int) -> Path:
        return self._folder / f"step_{step}.old"

    def _folder_of(self, step: int) -> Path:
        """The folder of a step; the one moved aside if a crash left only that."""
        folder = self._folder / f"step_{step}"
        return self._aside(step) if not folder.exists() and self._aside(step).is_dir() else folder

    def _remove(self, step: int) -> None:
        # The folder moved aside first: if the process ended between the two, it would come back as the step's folder.
        for folder in (self._aside(step), self._folder / f"step_{step}"):
            shutil.rmtree(folder, ignore_errors=True)

    def _write_manifest(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        # Whatever ``write`` left, without a list to keep in step with it: policy, critic and the files of every rank.
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
        manifest = {"format": FORMAT, "step": step, "files": files, "metadata": dict(metadata)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*paths, folder / MANIFEST):
            fsync_path(path)
        # a flushed file can be lost if the entry that names it is not flushed
        for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
            fsync_path(path)

    def _point_to(self, name: str) -> None:
        with atomic_path(self._folder / LATEST, unique=False) as temporary:
            temporary.write_text(name + "\n")

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: a run that was rolled back will write them again."""
        steps = self.steps()
        discarded = [later for later in steps if later > step]
        if not discarded:
            return
        # before the folders are removed, so that ``latest`` never names one that does not exist
        if kept := steps[: -len(discarded)]:
            self._point_to(self._folder_of(kept[-1]).name)
        else:
            (self._folder / LATEST).unlink(missing_ok=True)
        if self.best_step() in discarded:
            (self._folder / BEST).unlink()
        for later in discarded:
            self._remove(later)

    def _prune(self, also_keep: frozenset[int]) -> None:
        # After the new checkpoint has its name, never before: until then the oldest may be the only intact one. The
        # leftovers are those of killed processes; there is one writer, so none belongs to a write in progress.
        for leftover in self._folder.glob("step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        best = self.best_step()
        for step in self.steps()[: -self._keep]:
            if step != best and step not in also_keep:
                self._remove(step)
        for step in self.steps():
            if self._folder_of(step) == self._aside(step):
                self._aside(step).rename(self._folder / f"step_{step}")
            else:
                shutil.rmtree(self._aside(step), ignore_errors=True)


def _find_damage(folder: Path, files: Mapping[str, str]) -> str | None:
    # Every byte is read, because a file that was damaged by a power cut or by its storage may keep its size.
    for name, checksum in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != checksum:
            return f"{name} does not match its checksum"
    return None
