"""Lets the pods of one Job find each other through files on shared storage."""

import json
from collections.abc import Mapping
from pathlib import Path

from searchrl.storage.durable_files import atomic_write

HEAD_FILE = "head.json"


class Rendezvous:
    """The folder through which the pods of one group find each other.

    The head and every worker write a file of their own. Heartbeats are numbers that must change, not times, because the
    clocks of machines differ.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder = folder
        self._workers = workers
        folder.mkdir(parents=True, exist_ok=True)

    def publish_head(self, head: Mapping[str, object]) -> None:
        """Publish where the head is, or that the run has ended."""
        self._write(HEAD_FILE, head)

    def head(self) -> Mapping[str, object]:
        """What the head published last; empty before that."""
        return self._read(HEAD_FILE)

    def heartbeat(self, index: int, worker: str, session: str, number: int) -> None:
        """Publish that worker ``index`` is in this session and alive; ``worker`` names this start of it."""
        self._write(worker_file(index), {"worker": worker, "session": session, "beat": number})

    def leave(self, index: int) -> None:
        """Remove the file of worker ``index``."""
        (self._folder / worker_file(index)).unlink(missing_ok=True)

    def list_joined(self, session: str) -> dict[str, object]:
        """Heartbeat numbers of the workers in this session, by ``worker``."""
        records = [self._read(worker_file(index)) for index in range(1, self._workers + 1)]
        return {str(record["worker"]): record["beat"] for record in records if record.get("session") == session}

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        # Not flushed: a heartbeat is worthless after a power cut. A replaced pod and its predecessor may write at the
        # same time, so each write has a temporary file of its own.
        atomic_write(self._folder / name, json.dumps(content), durable=False)

    def _read(self, name: str) -> Mapping[str, object]:
        # Network storage may answer "stale file handle" for a file that was just replaced. All readers poll, so what
        # cannot be read now counts as missing until the next time.
        try:
            return json.loads((self._folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def worker_file(index: int) -> str:
    return f"worker-{index}.json"
