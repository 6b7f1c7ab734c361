"""SQLite's write-ahead log is used only where it is safe."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from services.evaluator.store.journal import Journal, choose_journal
from services.evaluator.store.run_store import RunStore

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:30 / /data rw,relatime shared:1 - nfs4 server:/export rw
31 30 0:31 / /data/fast rw - xfs /dev/sdb rw
32 22 0:32 / /shared\\040files rw - ceph mon:/ rw
33 22 0:33 / /new rw - unheardof x rw
34 22 0:34 / /twice rw - ext4 /dev/sdc rw
35 22 0:35 / /twice rw - cifs //server/share rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/results.sqlite", Journal.WAL),
        ("/data/results.sqlite", Journal.ROLLBACK),
        ("/data/fast/results.sqlite", Journal.WAL),
        ("/data/faster/results.sqlite", Journal.ROLLBACK),
        ("/shared files/results.sqlite", Journal.ROLLBACK),
        ("/new/results.sqlite", Journal.ROLLBACK),
        ("/twice/results.sqlite", Journal.ROLLBACK),
    ],
)
def test_the_write_ahead_log_is_chosen_on_local_file_systems_only(tmp_path: Path, path: str, expected: Journal) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert choose_journal(Path(path), Journal.AUTO, mounts) is expected
    assert choose_journal(Path(path), Journal.WAL, mounts) is Journal.WAL
    assert choose_journal(Path(path), Journal.ROLLBACK, mounts) is Journal.ROLLBACK


def test_an_unknown_file_system_gets_the_safe_journal(tmp_path: Path) -> None:
    assert choose_journal(Path("/x/y"), Journal.AUTO, tmp_path / "none") is Journal.ROLLBACK


def test_a_store_changes_its_journal_at_its_next_start(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    for journal, mode in ((Journal.WAL, "wal"), (Journal.ROLLBACK, "delete"), (Journal.WAL, "wal")):
        RunStore.open(path, journal).close()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == (mode,)
