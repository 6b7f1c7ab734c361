"""How do rows reach the disk? One thread owns the writing connection and commits what has queued up together."""

import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from searchrl.errors import Unavailable

LARGEST_COMMIT = 1000

Write = Callable[[sqlite3.Connection], object]


class StoreWriter:
    """Accepts writes from any thread. A write is durable (against a killed process) once its future is done.

    After a failed commit (a full disk, say) every further write fails too: results must not be lost silently.
    """

    def __init__(self, path: Path) -> None:
        self._queue: queue.SimpleQueue[tuple[Write, Future[None]] | None] = queue.SimpleQueue()
        self._failure: sqlite3.Error | ValueError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, args=(path,), name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Write) -> Future[None]:
        """Queue a write; it is committed together with its neighbours.

        Raises:
            Unavailable: an earlier commit failed, or the store was closed.
        """
        if self._failure is not None:
            raise Unavailable(f"results cannot be stored: {self._failure}", retry_after_seconds=None)
        if self._closed:
            raise Unavailable("the result store is closed", retry_after_seconds=None)
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # a caller that stops waiting cannot take a row out of the commit
        self._queue.put((write, done))
        return done

    def close(self) -> None:
        """Commit what is queued and stop the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _write_all(self, path: Path) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA busy_timeout = 10000")
            connection.execute("PRAGMA synchronous = NORMAL")
            running = True
            while running:
                batch, running = self._next_batch()
                if batch:
                    self._commit(connection, batch)
        finally:
            connection.close()

    def _next_batch(self) -> tuple[list[tuple[Write, Future[None]]], bool]:
        batch: list[tuple[Write, Future[None]]] = []
        entry = self._queue.get()
        while entry is not None:
            batch.append(entry)
            if len(batch) == LARGEST_COMMIT or self._queue.empty():
                return batch, True
            entry = self._queue.get()
        return batch, False

    def _commit(self, connection: sqlite3.Connection, batch: Sequence[tuple[Write, Future[None]]]) -> None:
        try:
            if self._failure is not None:
                raise self._failure
            connection.execute("BEGIN IMMEDIATE")
            for write, _ in batch:
                write(connection)
            connection.execute("COMMIT")
        except (sqlite3.Error, ValueError) as error:
            self._failure = error
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for _, done in batch:
                done.set_exception(Unavailable(f"results cannot be stored: {error}", retry_after_seconds=None))
            return
        for _, done in batch:
            done.set_result(None)
