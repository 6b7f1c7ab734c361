"""Writes rows to disk: one thread owns the writing connection and commits together what has queued up.

While a commit waits for the disk, further rows queue up and share the next one, so that the number of commits follows
the disk and not the number of rows.
"""

import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from searchrl.errors import InvalidRequest, ServiceError, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, JobThread
from services.evaluator.store.journal import Journal, apply_journal

MAX_ROWS_PER_COMMIT = 1000  # rows; bounds how long a commit holds the database, and how many rows fail with it
NAME = "result store"

Write = Callable[[sqlite3.Connection], object]
_Outcome = ServiceError | None

# Errors that one row's values can cause; every other error concerns the file and fails the commit.
_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.NotSupportedError,
    OverflowError,
    ValueError,
    TypeError,
)


class StoreWriter:
    """Accepts writes from any thread. A write is durable (against a killed process) once its future is done.

    A row that cannot be written fails alone. A commit that fails, for example on a full disk, fails every row in it and
    makes the service not ready until a later commit succeeds.
    """

    def __init__(self, path: Path, journal: Journal, health: Health | None = None) -> None:
        # Written in the writing thread only; other threads read it, and a bool needs no lock for that.
        self.is_failing = False
        self._thread = JobThread[sqlite3.Connection](
            FailureWatch(NAME, health=health, not_ready_after=1),
            lambda: _open(path, journal),
            perform=_commit,
            largest_batch=MAX_ROWS_PER_COMMIT,
            close_resource=sqlite3.Connection.close,
        )

    def submit(self, write: Write) -> Future[None]:
        """Queue a write; it is committed together with its neighbors, even if its caller no longer waits for it.

        The future's errors: ``InvalidRequest`` for a row that cannot be stored, ``Unavailable`` for a failed commit.

        Raises:
            Unavailable: the store was closed.
        """
        # A second future, because the thread's own has the row's error as a result. It counts as running from the
        # start, so that a caller that is cancelled cannot cancel the write.
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()

        def hand_over(finished: Future[object]) -> None:  # called in the writing thread
            failure = finished.exception()
            # Before ``done``: whoever sees the row stored also sees that the store works.
            self.is_failing = failure is not None  # an exception is a failed commit; a row's own error is a result
            outcome = failure or finished.result()
            if isinstance(outcome, BaseException):
                done.set_exception(outcome)
            else:
                done.set_result(None)

        self._thread.submit(write, can_be_cancelled=False).add_done_callback(hand_over)
        return done

    def close(self) -> None:
        """Commit what is queued and end the thread."""
        self._thread.close()


def _open(path: Path, journal: Journal) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA busy_timeout = 10000")  # ms; with a rollback journal a reader holds up a commit
    apply_journal(connection, journal)
    return connection


def _commit(connection: sqlite3.Connection, writes: Sequence[Write]) -> list[_Outcome]:
    """Write in one transaction; the outcome of each write, None for a success.

    IMMEDIATE takes the write lock at the start: taken later, it could fail after some of the rows were written.

    Raises:
        Unavailable: nothing was committed.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [_write_one(connection, write) for write in writes]
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise Unavailable(f"results cannot be stored: {error}", retry_after_seconds=None) from error
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return outcomes


def _write_one(connection: sqlite3.Connection, write: Write) -> _Outcome:
    """Write one row inside a savepoint, to which an error of the row's own values rolls back."""
    connection.execute("SAVEPOINT one")
    try:
        write(connection)
    except _ROW_ERRORS as error:
        connection.execute("ROLLBACK TO one")
        return InvalidRequest(f"the row cannot be stored: {type(error).__name__}: {error}")
    finally:
        # After ROLLBACK TO the savepoint still exists, so it is released in any case. Not in a transaction: a full disk
        # makes SQLite roll back everything, savepoints included.
        if connection.in_transaction:
            connection.execute("RELEASE one")
    return None
