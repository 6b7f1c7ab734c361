"""Stores every run with its questions, its episodes and the passages that they refer to.

One process writes: it holds a lock on a file beside the store (flock, which ends with the process). Other processes may
read meanwhile. Within the writer, one thread owns the writing connection; each read opens a connection of its own, so
reads may come from any thread.
"""

import contextlib
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, NotFound
from searchrl.platform.health import Health
from searchrl.storage.durable_files import try_lock
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EndReason, EvaluationState, RunRecord, RunSpec
from services.evaluator.store.journal import Journal, apply_journal, choose_journal
from services.evaluator.store.row_codec import (
    EPISODE_COLUMNS,
    RUN_COLUMNS,
    episode_from_row,
    episode_to_row,
    question_from_text,
    question_to_text,
    run_from_row,
    run_to_row,
)
from services.evaluator.store.schema import prepare
from services.evaluator.store.store_writer import StoreWriter, Write

VARIABLES_PER_STATEMENT = 500  # SQLite before 3.32 allows 999
MAX_REMEMBERED_PASSAGES = 100_000  # bounds memory; a passage that is forgotten is only sent to the database again


class RunStore:
    """The result store. Reads may come from any thread; writes go through one thread and are committed in groups."""

    def __init__(self, path: Path, writer: StoreWriter | None, lock: IO[str] | None) -> None:
        self._path = path
        self._writer = writer
        self._lock = lock
        self._stored_passages: OrderedDict[tuple[str, str], None] = OrderedDict()

    @classmethod
    def open(cls, path: Path, journal: Journal = Journal.AUTO, health: Health | None = None) -> "RunStore":
        """Open for writing, creating the file if needed; ``health`` is not ready while nothing can be written.

        Raises:
            ConfigurationError: another process writes to this store, or the file is something else.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file of its own: SQLite locks the store itself with POSIX locks, which this process would lose whenever
            # it closes any other descriptor of that file.
            lock = path.with_name(path.name + ".lock").open("a")
        except OSError as error:
            raise ConfigurationError(f"the result store {path} cannot be opened: {error}") from error
        try:
            is_ours = try_lock(lock)
        except OSError as error:
            lock.close()
            raise ConfigurationError(f"the result store {path} cannot be locked: {error}") from error
        if not is_ours:
            lock.close()
            raise ConfigurationError(f"another evaluator writes to {path}; give each its own store")
        try:
            chosen = choose_journal(path, journal)
            # isolation_level=None: the module would otherwise begin transactions by itself, beside those that are
            # written out.
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("PRAGMA busy_timeout = 10000")
                apply_journal(connection, chosen)
                prepare(connection)
        except sqlite3.OperationalError as error:
            lock.close()
            raise ConfigurationError(f"the result store {path} cannot be opened: {error}") from error
        except sqlite3.Error as error:
            lock.close()
            raise ConfigurationError(f"{path} is not a result store ({error}); name another file") from error
        except ConfigurationError:
            lock.close()
            raise
        # The writing thread opens its own connection: one of sqlite3 belongs to the thread that opened it.
        return cls(path, StoreWriter(path, chosen, health), lock)

    @classmethod
    def open_for_reading(cls, path: Path) -> "RunStore":
        """Open an existing store that another process may be writing to.

        Raises:
            ConfigurationError: there is no such store.
        """
        if not path.is_file():
            raise ConfigurationError(f"there is no result store {path}")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            prepare(connection, readonly=True)
        return cls(path, None, None)

    def close(self) -> None:
        """Commit what is queued and release the store."""
        # The lock is released last, so that the next process never writes beside this one.
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            self._lock.close()

    # ---- writing

    def create_run(self, record: RunRecord, questions: Sequence[Question]) -> None:
        """Store a new run with its questions; returns once both are on disk."""
        rows = [(record.spec.run_id, number, question_to_text(q)) for number, q in enumerate(questions)]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO runs ({RUN_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", run_to_row(record))
            connection.executemany("INSERT INTO questions VALUES (?,?,?)", rows)

        self._write(write).result()

    def close_run(self, ended: RunRecord) -> RunRecord:
        """Record how a run ended; returns after every episode queued before is written."""
        return self._update(replace(ended, finished=utc_now()))

    def reopen_run(self, record: RunRecord, spec: RunSpec) -> RunRecord:
        """Record that a run continues, with the settings that the new request may change."""
        spec = replace(record.spec, concurrency=spec.concurrency, allow_changes=spec.allow_changes)
        return self._update(
            replace(record, spec=spec, state=EvaluationState.RUNNING, error="", reason=EndReason.NONE, finished="")
        )

    def _update(self, record: RunRecord) -> RunRecord:
        row = run_to_row(record)
        # All columns, the unchanged ones as well: the record is the whole truth about the run.
        assignments = ", ".join(f"{name} = ?" for name in RUN_COLUMNS.split(", "))
        self._write(
            lambda connection: connection.execute(
                f"UPDATE runs SET {assignments} WHERE run_id = ?", (*row, record.spec.run_id)
            )
        ).result()
        return record

    @property
    def is_failing(self) -> bool:
        """Whether the last commit failed."""
        return self._writer is not None and self._writer.is_failing

    def probe(self) -> None:
        """Write something without effect, which shows whether the store works again.

        Raises:
            Unavailable: it still cannot be written.
        """
        self._write(lambda connection: connection.execute("UPDATE schema_version SET version = version")).result()

    def set_missing_gold(self, run_id: str, checked: int, missing: Sequence[str]) -> None:
        """Record which gold passages the corpus lacks, of ``checked`` that were looked up."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO gold_checks VALUES (?,?)", (run_id, checked))
            connection.execute("DELETE FROM missing_gold WHERE run_id = ?", (run_id,))
            connection.executemany("INSERT INTO missing_gold VALUES (?,?)", [(run_id, name) for name in missing])

        self._write(write).result()

    def append(self, run_id: str, episode: Episode, passages: Sequence[Passage] = ()) -> Future[None]:
        """Queue an episode; an earlier row of the same label and question is replaced.

        The future's errors are those of ``StoreWriter.submit``.
        """
        # Read without a lock while the writing thread changes it: a key is added only after its commit, so the worst
        # that can happen is that a stored passage is sent again and ignored.
        fresh = [(run_id, p.id, p.title, p.text) for p in passages if (run_id, p.id) not in self._stored_passages]

        def write(connection: sqlite3.Connection) -> None:
            row = episode_to_row(run_id, episode)
            connection.execute(f"INSERT OR REPLACE INTO episodes ({EPISODE_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)", row)
            connection.executemany("INSERT OR IGNORE INTO passages VALUES (?,?,?,?)", fresh)

        def remember(done: Future[None]) -> None:
            if done.exception() is None:
                self._remember_passages((run_id, name) for _, name, _, _ in fresh)

        stored = self._write(write)
        stored.add_done_callback(remember)
        return stored

    def _remember_passages(self, keys: Iterable[tuple[str, str]]) -> None:
        """Note the last passages that were stored, which need not be sent again; called in the writing thread."""
        for key in keys:
            self._stored_passages[key] = None
        while len(self._stored_passages) > MAX_REMEMBERED_PASSAGES:
            self._stored_passages.popitem(last=False)

    # ---- reading

    def runs(self) -> list[RunRecord]:
        """Every run, newest first."""
        with self._reader() as connection:
            rows = connection.execute(f"SELECT {RUN_COLUMNS} FROM runs ORDER BY created DESC, run_id").fetchall()
        return [run_from_row(row) for row in rows]

    def find_run(self, run_id: str) -> RunRecord | None:
        with self._reader() as connection:
            row = connection.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        return None if row is None else run_from_row(row)

    def run(self, run_id: str) -> RunRecord:
        """The run of that id.

        Raises:
            NotFound: there is none.
        """
        record = self.find_run(run_id)
        if record is None:
            raise NotFound(f"there is no evaluation run {run_id!r}")
        return record

    def questions(self, run_id: str) -> list[Question]:
        """The run's questions in file order."""
        with self._reader() as connection:
            rows = connection.execute("SELECT row FROM questions WHERE run_id = ? ORDER BY position", (run_id,))
            return [question_from_text(text) for (text,) in rows]

    def episodes(self, run_id: str, label: str | None = None) -> list[Episode]:
        """The run's episodes, of one column or of all."""
        # ORDER BY rowid is the order of recording; a row that was replaced counts as new.
        condition, values = ("", (run_id,)) if label is None else (" AND label = ?", (run_id, label))
        with self._reader() as connection:
            rows = connection.execute(
                f"SELECT {EPISODE_COLUMNS} FROM episodes WHERE run_id = ?{condition} ORDER BY rowid", values
            )
            return [episode_from_row(row) for row in rows]

    def passages(self, run_id: str, ids: Sequence[str]) -> dict[str, Passage]:
        """The stored passages among ``ids``."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Passage] = {}
        with self._reader() as connection:
            for start in range(0, len(wanted), VARIABLES_PER_STATEMENT):
                part = wanted[start : start + VARIABLES_PER_STATEMENT]
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT passage_id, title, text FROM passages WHERE run_id = ? AND passage_id IN ({marks})",
                    (run_id, *part),
                )
                found.update((row[0], Passage(*row)) for row in rows)
        return found

    def missing_gold(self, run_id: str) -> tuple[int, frozenset[str]]:
        """How many gold passages were looked up (0: never), and which of them the corpus lacks."""
        with self._reader() as connection:
            check = connection.execute("SELECT checked FROM gold_checks WHERE run_id = ?", (run_id,)).fetchone()
            rows = connection.execute("SELECT passage_id FROM missing_gold WHERE run_id = ?", (run_id,)).fetchall()
        return (0 if check is None else check[0]), frozenset(name for (name,) in rows)

    # ---- inside

    def _write(self, write: Write) -> Future[None]:
        if self._writer is None:
            raise ConfigurationError("this result store was opened for reading only")
        return self._writer.submit(write)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("PRAGMA busy_timeout = 10000")  # ms; with a rollback journal a commit holds up readers
            yield connection
        finally:
            connection.close()


def stamp_created(record: RunRecord) -> RunRecord:
    """The record of a run that starts now."""
    return replace(record, created=utc_now())


def utc_now() -> str:
    """The current time in UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
