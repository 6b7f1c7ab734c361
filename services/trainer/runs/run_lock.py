"""Provides the lock that lets one process at a time write into a run folder.

It is a lock of the kernel, which ends with its process, also on shared storage (NFS 4, CephFS, Lustre). If the file
system has no locks, the run continues without one and logs a warning.
"""

import asyncio
import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.platform.processes import is_running, started_at
from searchrl.storage.durable_files import try_lock

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
POLL_SECONDS = 0.5  # a waiting run starts at most this late; each attempt opens a file on what may be shared storage


@dataclass(frozen=True, slots=True)
class LockOwner:
    """The process that holds a run.

    ``started``, seconds since the epoch, tells it from a later process with the same id; None in older lock files.
    """

    host: str
    pid: int
    started: float | None = None

    @classmethod
    def of_this_process(cls) -> "LockOwner":
        return cls(socket.gethostname(), os.getpid(), started_at())

    def still_runs(self) -> bool:
        """Return whether this very process runs on this machine; False also if that is unknown."""
        return self.started is not None and is_running(self.pid, self.started)


LOCK_SECONDS = 150.0
"""Longer than the 120 s that a training pod has from SIGTERM to SIGKILL: the storage also has to free its lock."""


class RunLock:
    """The lock of one run folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._file: IO[str] | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opened to append, because "w" would erase the owner's name before the lock is ours. The file is never
            # removed: otherwise one process could lock the removed file, another the new one of the same name, and both
            # would train.
            file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            folder = self._path.parent
            raise ConfigurationError(f"cannot write into the run folder {folder}: {error.strerror}") from error
        try:
            is_ours = try_lock(file)
        except OSError:
            is_ours = True
            logger.warning("%s cannot be locked here: make sure that no other process trains this run", self._path)
        if not is_ours:
            file.close()
            return False
        file.truncate(0)
        file.write(json.dumps(asdict(LockOwner.of_this_process())))
        file.flush()
        self._file = file
        return True

    def is_held(self) -> bool | None:
        """Return whether any process holds the lock, and write nothing; None if the file system has no locks.

        Raises:
            ConfigurationError: the lock file cannot be opened.
        """
        try:
            # The probe itself holds the lock for an instant; a trainer that tries then tries again after
            # ``POLL_SECONDS``.
            with self._path.open("r+", encoding="utf-8") as file:  # NFS locks only files that are open for writing
                try:
                    return not try_lock(file)
                except OSError:
                    return None
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigurationError(f"cannot open {self._path}: {error.strerror}") from error

    async def acquire(self, seconds: float) -> None:
        """Wait for the lock: its last holder may still be saving a checkpoint.

        Raises:
            Unavailable: another process still holds it after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        waited = False
        while not self.try_acquire():
            owner = self.owner()
            name = f"process {owner.pid} on {owner.host}" if owner else "another process"
            if time.monotonic() > deadline:
                raise Unavailable(f"the run in {self._path.parent} belongs to {name}", retry_after_seconds=None)
            if not waited:
                logger.info("waiting for %s to release the run", name)
            waited = True
            await asyncio.sleep(POLL_SECONDS)

    def owner(self) -> LockOwner | None:
        """Return the process that wrote the lock file last; it may have ended."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return LockOwner(content["host"], content["pid"], content.get("started"))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()  # ends the kernel's lock
            self._file = None
