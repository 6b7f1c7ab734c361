"""The folder of index generations and the name of the current one, changed only by atomic, durable renames."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import orjson

from searchrl.errors import ConfigurationError, Conflict, NotFound, Unavailable
from searchrl.storage.durable_files import atomic_write, explain_disk_full, rename_durably, try_lock
from services.retriever.indexes.manifest import (
    MANIFEST_FILE,
    BuildPlan,
    Manifest,
    build_key,
    corpus_digest,
    read_manifest,
    verify_files,
    write_manifest,
)

logger = logging.getLogger(__name__)

GENERATIONS, CURRENT_FILE, LOCK_FILE = "generations", "current", "build.lock"
_UNFINISHED = ".building-"
# ``BuildLock.describe_interruption`` holds the lock for microseconds, a build for seconds at least; so a lock that is
# still held after this many attempts belongs to a build.
_LOCK_ATTEMPTS, _LOCK_PAUSE_SECONDS = 5, 0.02


class IndexStore:
    """A folder of generations.

    ``generations/<id>/`` is complete or absent; ``current`` names the one to serve. A build killed at any moment leaves
    both unchanged, and the next build removes its unfinished files; until then ``interrupted_build`` names it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations = folder / GENERATIONS
        self._lock = BuildLock(folder / LOCK_FILE)

    @property
    def folder(self) -> Path:
        return self._folder

    def generation_folder(self, generation: str) -> Path:
        """Folder of a complete generation.

        Raises:
            NotFound: there is none with this id.
        """
        folder = self._generations / generation
        # The name comes from requests and from ``current``; one such as ../x must not lead out of the folder.
        is_one_name = generation == Path(generation).name and not generation.startswith(".")
        if not is_one_name or not os.path.isfile(folder / MANIFEST_FILE):  # no name, however long or odd, raises here
            raise NotFound(f"there is no index generation '{generation}'")
        return folder

    def list(self) -> list[Manifest]:
        """Manifests of all complete generations, oldest first; damaged ones are left out and logged."""
        manifests: list[Manifest] = []
        for path in self._generations.glob(f"*/{MANIFEST_FILE}"):
            if not path.parent.name.startswith("."):
                try:
                    manifests.append(read_manifest(path.parent))
                except ConfigurationError as error:
                    logger.warning("omitted from the list: %s", error)
        return sorted(manifests, key=lambda manifest: (manifest.created, manifest.generation))

    def find_equal(self, plan: BuildPlan) -> Manifest | None:
        """The newest intact generation of the same corpus and build plan, if there is one.

        Raises:
            ConfigurationError: the corpus or the encoder cannot be read.
        """
        known = [manifest for manifest in self.list() if manifest.content_key]
        # Hashing corpus and model reads all of their bytes, for nothing if there is no candidate.
        if not known:
            return None
        key = build_key(plan, corpus_digest(plan.corpus))
        for manifest in reversed(known):
            if manifest.content_key != key:
                continue
            try:
                verify_files(self.generation_folder(manifest.generation), manifest, "full")
            except ConfigurationError as error:
                logger.warning("not reused: %s", error)
                continue
            return manifest
        return None

    def current(self) -> str | None:
        """Id of the generation to serve; None if none was ever activated.

        Raises:
            ConfigurationError: the file does not hold a name.
        """
        path = self._folder / CURRENT_FILE
        try:
            return path.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path} is damaged: write the name of a generation into it") from error

    def activate(self, generation: str) -> None:
        """Point ``current`` at a complete generation.

        Raises:
            NotFound: there is none with this id.
            Unavailable: the disk is full or cannot be written; the previous one stays current.
        """
        self.generation_folder(generation)
        try:
            with self._explain_disk_full():
                atomic_write(self._folder / CURRENT_FILE, generation + "\n")
        except OSError as error:
            raise Unavailable(
                f"cannot write {self._folder / CURRENT_FILE}: {error.strerror}; the previous generation stays current",
                None,
            ) from error

    def interrupted_build(self) -> str:
        """One sentence about the last build if it was killed before completion; empty otherwise."""
        return self._lock.describe_interruption()

    @contextmanager
    def start_build(self, what: str = "generation") -> Iterator[Path]:
        """An empty folder to build ``what`` in, removed at the end unless ``complete`` has renamed it.

        Raises:
            Conflict: another build is running.
            ConfigurationError: the folder cannot be written.
            Unavailable: the disk became full; the other generations are unchanged.
        """
        try:
            self._generations.mkdir(parents=True, exist_ok=True)
            # Only errors of taking the lock become ConfigurationErrors. Those of the build, raised at the ``yield``
            # below, pass unchanged, which ``with`` around both would not allow.
            held = contextlib.ExitStack()
            held.enter_context(self._lock.hold(what))
        except OSError as error:
            raise ConfigurationError(f"cannot write into {self._folder}: {error.strerror}") from error
        with held:
            # The lock is held, so every unfinished folder belongs to a build that was killed.
            for remains in self._generations.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(remains)
            # Beside the generations, hence on the same file system: only there is a rename atomic.
            folder = self._generations / f"{_UNFINISHED}{os.getpid()}"
            folder.mkdir()
            try:
                with self._explain_disk_full():
                    yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _explain_disk_full(self) -> AbstractContextManager[None]:
        advice = "free space or enlarge the volume, then try again; existing generations are unchanged"
        return explain_disk_full(f"a new index in {self._folder}", advice)

    def complete(self, folder: Path, manifest: Manifest) -> Manifest:
        """Turn a build folder into a generation, which one rename makes visible.

        The files are on disk before the rename, so that a crash cannot leave a generation that is visible and empty.
        """
        complete = write_manifest(folder, manifest)
        rename_durably(folder, self._generations / manifest.generation)
        return complete

    def new_generation_id(self, kind: str, corpus_sha256: str) -> str:
        """An unused id that sorts by time and names the kind and the corpus."""
        # Called with the build lock held, so no other build can take the same name meanwhile.
        stem = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{kind}-{corpus_sha256[:8]}"
        taken = {path.name for path in self._generations.glob(f"{stem}*")}
        number = 1
        while (name := stem if number == 1 else f"{stem}-{number}") in taken:
            number += 1
        return name


class BuildLock:
    """Held for the duration of a build. The file names what is being built and is emptied at the end of the build, by
    success or by a failure that its caller receives. A note without a holder therefore belongs to a killed build.

    The kernel releases the lock (flock) with the process, however it ends, so that no stale lock stops later builds.
    The file is never deleted: a build that has opened it would then lock a file that no other build sees.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def hold(self, what: str) -> Iterator[None]:
        """Hold the lock while ``what`` is built; the note of a killed build is overwritten.

        Raises:
            Conflict: another build is running.
            OSError: the file cannot be written.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)  # no O_TRUNC: a running build's note must stay
        try:
            if not _lock_for_build(descriptor):
                raise Conflict(f"another build is writing into {self._path.parent}")
            os.truncate(descriptor, 0)
            note = {"what": what, "started": datetime.now(UTC).isoformat(" ", "seconds")}
            with contextlib.suppress(OSError):  # a full disk is reported by the build itself
                os.write(descriptor, orjson.dumps(note))
            try:
                yield
            except Exception:  # not BaseException: a build that a signal stopped counts as killed, its note stays
                os.truncate(descriptor, 0)
                raise
            os.truncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def describe_interruption(self) -> str:
        """One sentence about the last build if it was killed before completion; empty otherwise."""
        try:
            with self._path.open("rb") as file:
                note = file.read()
                if not note:
                    return ""
                # Shared, so that two readers do not take each other for a running build.
                if not try_lock(file, shared=True):
                    return ""  # its build is running
            parts = orjson.loads(note)
            return f"the build of a {parts['what']}, started {parts['started']}, was killed; request it again"
        except (OSError, ValueError, KeyError, TypeError):  # no file, a running build, or no note of ours
            return ""


def _lock_for_build(descriptor: int) -> bool:
    """Take the lock; return False if a build holds it."""
    for _ in range(_LOCK_ATTEMPTS - 1):
        if try_lock(descriptor):
            return True
        time.sleep(_LOCK_PAUSE_SECONDS)
    return try_lock(descriptor)
