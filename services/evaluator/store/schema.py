"""Defines the tables of the result store, their version and the conversions from older versions."""

import sqlite3

from searchrl.errors import ConfigurationError

SCHEMA_VERSION = 2  # increases with every change of the tables, together with a conversion from the version before
CONVERSIONS = {1: "ALTER TABLE runs ADD COLUMN facts TEXT NOT NULL DEFAULT '{}'"}
"""The statement that converts each older version to the next one."""

# The key of every table begins with run_id, by which nearly all reads go. episodes has a rowid, which keeps the order
# of recording; passages has one because SQLite stores long rows badly in a WITHOUT ROWID table.
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
    finished TEXT NOT NULL,
    facts TEXT NOT NULL DEFAULT '{}'
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
    """Create the tables of a new store, convert those of an older version, or check the version.

    Raises:
        ConfigurationError: the file has another version, or is not a result store.
    """
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables and not readonly:
            # executescript runs in autocommit mode; with BEGIN and COMMIT in the script, a process that is killed
            # leaves an empty file and no half of the tables.
            connection.executescript(f"BEGIN;{TABLES}INSERT INTO schema_version VALUES ({SCHEMA_VERSION});COMMIT;")
            return
        if "schema_version" not in tables:
            raise ConfigurationError("the file is not a result store; name another file")
        version = connection.execute("SELECT version FROM schema_version").fetchone()[0]
        while not readonly and version in CONVERSIONS:
            connection.executescript(
                f"BEGIN;{CONVERSIONS[version]};UPDATE schema_version SET version = {version + 1};COMMIT;"
            )
            version += 1
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(f"the file is not a result store ({error}); name another file") from error
    if readonly and version in CONVERSIONS:
        raise ConfigurationError(
            f"the result store has the older schema version {version}; start an evaluator on it once, which converts it"
        )
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the result store has schema version {version}, this program reads {SCHEMA_VERSION}; name another file"
        )
