"""Which tables does the result store have, and which version of them?"""

import sqlite3

from searchrl.errors import ConfigurationError

SCHEMA_VERSION = 1

TABLES = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    columns TEXT NOT NULL,
    questions_sha256 TEXT NOT NULL,
    total_questions INTEGER NOT NULL,
    state TEXT NOT NULL,
    index_generation TEXT NOT NULL,
    error TEXT NOT NULL,
    created TEXT NOT NULL,
    finished TEXT NOT NULL
);
CREATE TABLE questions (
    run_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    row TEXT NOT NULL,
    PRIMARY KEY (run_id, position)
) WITHOUT ROWID;
CREATE TABLE episodes (
    run_id TEXT NOT NULL,
    label TEXT NOT NULL,
    question_id TEXT NOT NULL,
    failure TEXT NOT NULL,
    correct INTEGER,
    seconds REAL NOT NULL,
    body TEXT NOT NULL,
    trajectory BLOB,
    PRIMARY KEY (run_id, label, question_id)
);
CREATE TABLE passages (
    run_id TEXT NOT NULL,
    passage_id TEXT NOT NULL,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (run_id, passage_id)
);
CREATE TABLE missing_gold (
    run_id TEXT NOT NULL,
    passage_id TEXT NOT NULL,
    PRIMARY KEY (run_id, passage_id)
) WITHOUT ROWID;
CREATE TABLE gold_checks (run_id TEXT PRIMARY KEY, checked INTEGER NOT NULL);
"""


def prepare(connection: sqlite3.Connection, *, readonly: bool = False) -> None:
    """Create the tables of a new store, or check an old one's version.

    Raises:
        ConfigurationError: the file is of another version, or no result store at all.
    """
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables and not readonly:
            connection.executescript(f"BEGIN;{TABLES}INSERT INTO schema_version VALUES ({SCHEMA_VERSION});COMMIT;")
            return
        if "schema_version" not in tables:
            raise ConfigurationError("the file is not a result store; name another file")
        version = connection.execute("SELECT version FROM schema_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(f"the file is not a result store ({error}); name another file") from error
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the result store has schema version {version}, this program reads {SCHEMA_VERSION}; name another file"
        )
