"""Keeps finished trajectories on disk until they are trained, so that a resumed run does not sample them again.

A trajectory is used again only in the same run and with the weights that sampled it. The name of its file contains what
must match: group, index in the group, and the origin, a hash of the run's identity, the policy version and the weights.

Threads: the event loop calls every method and keeps the index of files (``_kept``). One thread reads, writes and
removes files in the order of the calls, so a file is removed before its successor is written, without a lock. Only
``open`` and ``close``, which run before and after all others, touch the folder themselves.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from searchrl.domain.trajectory import Trajectory
from searchrl.errors import ServiceError, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, JobThread
from searchrl.storage.durable_files import atomic_write

logger = logging.getLogger(__name__)

OWNER = "finished rollouts"
FORMAT = 1  # part of every origin: files of another layout are never read
ORIGIN_DIGITS = 16  # 64 bits: origins of one run practically never collide, and file names stay short
FILE_NAME = re.compile(rf"g(\d+)-r(\d+)\.([0-9a-f]{{{ORIGIN_DIGITS}}})\.json")

Key = tuple[int, int]
"""Group id and rollout index."""


@dataclass(frozen=True, slots=True)
class FinishedRollout:
    """A trajectory before its reward, with the attempts and seconds that it took."""

    trajectory: Trajectory
    attempts: int
    seconds: float


_CODEC = TypeAdapter(FinishedRollout)


class FinishedRollouts:
    """The finished, untrained trajectories of one run.

    It never holds more than the rollouts that are in flight or wait for the learner. If the disk is full, a rollout is
    not kept, and the run continues.

    Args:
        lockstep: rollouts that are dispatched together decode together; see ``prepare``.
        count: called once per failure of the disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        lockstep: bool,
        health: Health | None = None,
        count: Callable[[], object] | None = None,
    ) -> None:
        self._folder = folder
        self._lockstep = lockstep
        self._jobs = JobThread[Path](FailureWatch(OWNER, health=health, count=count), self._open_folder)
        self._identity: Mapping[str, str] = {}
        # One origin per version that this process served: a rollout that was sampled before a publication may finish
        # after it, and is kept under the version of its tokens. A resumed run serves that version again if its
        # checkpoint is older than the last publication.
        self._origins: dict[int, str] = {}
        self._version = 0
        self._kept: dict[Key, str] = {}  # the origin of each file
        self._of_earlier_process: set[Key] = set()

    def open(self, identity: Mapping[str, str]) -> None:
        """Find the files of an earlier process of this run."""
        self._identity = identity
        for path in self._folder.glob("*"):
            # A file appears under its name by a rename, so every file that has such a name was written to its end.
            match = FILE_NAME.fullmatch(path.name)
            if match is None:
                path.unlink(missing_ok=True)  # the unfinished file of a process that was killed
            else:
                self._kept[int(match[1]), int(match[2])] = match[3]
        self._of_earlier_process = set(self._kept)

    def serve(self, version: int, fingerprint: str) -> None:
        """Set the weights with which rollouts start from now on."""
        # Sorted, because a resumed process may list the parts of its identity in another order. The weights are named
        # in addition to the version: a run that is resumed with another learning rate trains other weights to the same
        # version.
        together = {"format": FORMAT, "run": dict(self._identity), "version": version, "weights": fingerprint}
        digest = hashlib.sha256(json.dumps(together, sort_keys=True).encode()).hexdigest()
        self._origins[version] = digest[:ORIGIN_DIGITS]
        self._version = version

    def prepare(self, group_ids: Iterable[int], group_size: int) -> None:
        """Prepare for rollouts of these groups; in lockstep, use the earlier process's files only if all are there.

        Rollouts of a synchronous step decode in one batch, and the batch's composition decides the rounding: with some
        rollouts kept, the others would differ in their last bits from those of a run that was never killed.
        """
        wanted = {(group_id, rollout_index) for group_id in group_ids for rollout_index in range(group_size)}
        earlier = wanted & self._of_earlier_process
        # Files of an earlier process are judged once, when their group starts for the first time. If an outage leaves
        # the group underfilled and it starts again, its files are this process's own, and only what is missing is
        # sampled.
        self._of_earlier_process -= wanted
        if self._lockstep and any(self._kept.get(key) != self._origins[self._version] for key in wanted):
            self._forget(earlier)

    async def take(self, group_id: int, rollout_index: int) -> FinishedRollout | None:
        """Return the kept rollout; None if there is none of the weights that are served now."""
        origin = self._kept.get((group_id, rollout_index))
        if origin is None or origin != self._origins[self._version]:
            return None
        try:
            return await self._jobs.call(lambda folder: _read(folder / _file_name((group_id, rollout_index), origin)))
        except ServiceError as error:
            logger.warning(
                "the kept rollout %d/%d cannot be read and is sampled again: %s", group_id, rollout_index, error
            )
            return None

    async def keep(self, group_id: int, rollout_index: int, rollout: FinishedRollout) -> None:
        """Write a rollout, unless it saw several policy versions: a resumed run serves only one of them."""
        tokens = rollout.trajectory.tokens
        # No token was sampled if the prompt filled the context.
        versions = set(compress(tokens.versions, tokens.mask)) or {self._version}
        origin = self._origins.get(versions.pop()) if len(versions) == 1 else None
        key = (group_id, rollout_index)
        if origin is None or self._kept.get(key) == origin:
            return
        # A file of other weights could not be used any more. At most one file per rollout bounds the size of the
        # folder.
        self._forget([key])
        try:
            await self._jobs.call(lambda folder: _write(folder / _file_name(key, origin), rollout))
        except ServiceError as error:
            logger.warning("rollout %d/%d is not kept: %s", group_id, rollout_index, error)
        else:
            self._kept[key] = origin

    def keep_only(self, is_to_be_trained: Callable[[int], bool]) -> None:
        """Remove the rollouts of groups that were trained or whose question is left out."""
        self._forget([key for key in self._kept if not is_to_be_trained(key[0])])

    def _forget(self, keys: Iterable[Key]) -> None:
        # The index forgets a file at once, while the thread may remove it much later. That is safe: a write of the same
        # name that is queued after this line also runs after the removal.
        names = [_file_name(key, origin) for key in keys if (origin := self._kept.pop(key, None)) is not None]
        if names:
            self._jobs.submit(lambda folder: _remove(folder, names), can_be_cancelled=False)

    def close(self, *, discard: bool = False) -> None:
        """End the thread after its queued writes; ``discard`` removes the folder of a run that is complete."""
        self._jobs.close()
        if discard:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open_folder(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder


def _file_name(key: Key, origin: str) -> str:
    return f"g{key[0]:09d}-r{key[1]:04d}.{origin}.json"


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _write(path: Path, rollout: FinishedRollout) -> None:
    try:
        # Not flushed to the disk: a step has thousands of rollouts, and each would wait for it. A killed process loses
        # nothing by that; after a power cut, a file that is empty or incomplete cannot be read and is sampled again.
        atomic_write(path, _CODEC.dump_json(rollout), durable=False)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> FinishedRollout:
    try:
        return _CODEC.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Unavailable(f"cannot read {path}: {type(error).__name__}") from error
