"""The lock file of index builds: it allows one build at a time and tells which build was killed."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import orjson

from searchrl.errors import Conflict


class BuildLock:
    """Held for the duration of a build. The file names what is being built and is emptied at the end of the build, by
    success or by a failure that its caller receives. A note without a holder therefore belongs to a killed build.

    The kernel releases the lock (flock) with the process, however it ends, so that no stale lock stops later builds.
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
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(f"another build is writing into {self._path.parent}") from error
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
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            parts = orjson.loads(note)
            return f"the build of a {parts['what']}, started {parts['started']}, was killed; request it again"
        except (OSError, ValueError, KeyError, TypeError):  # no file, a running build, or no note of ours
            return ""
