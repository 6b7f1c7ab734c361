"""Checkpoints survive a crash at any instant: a half-written or damaged one is never loaded."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.storage.durable_files import explain_disk_full, sha256_file
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.training_state import read_state, write_state
from tests.fakes.train_rows import write_tiny_model


def writer(text: str):
    def write(folder: Path) -> None:
        (folder / "weights.bin").write_text(text)
        (folder / "orchestrator").mkdir()
        (folder / "orchestrator" / "queue.json").write_text("[]")

    return write


def newest_text(store: CheckpointStore) -> str | None:
    checkpoint = store.newest_intact()
    return None if checkpoint is None else (checkpoint.folder / "weights.bin").read_text()


def test_a_saved_checkpoint_is_found_with_its_metadata(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    assert store.newest_intact() is None
    store.save(5, writer("five"), {"dataset": "abc"})
    found = CheckpointStore(tmp_path / "run").newest_intact()
    assert found is not None
    assert (found.step, found.metadata) == (5, {"dataset": "abc"})
    assert (tmp_path / "run" / "latest").read_text().strip() == "step_5"


def test_the_checkpoint_that_is_found_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("services.trainer.checkpoints.checkpoint_store.sha256_file", count)
    assert newest_text(store) == "one"
    assert sorted(hashed) == ["queue.json", "weights.bin"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (2, 9, 10, 30):
        store.save(step, writer(str(step)))
    assert store.steps() == [10, 30]
    assert newest_text(store) == "30"


def test_a_checkpoint_that_a_rollback_may_need_is_kept_beside_the_newest_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        store.save(step, writer(f"step {step}"), also_keep=[1])
    assert store.steps() == [1, 3, 4]
    found = store.newest_intact(2)
    assert found is not None and found.step == 1
    store.save(5, writer("step 5"))
    assert store.steps() == [4, 5] and store.newest_intact(3) is None


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("old"))
    store.save(1, writer("new"))
    assert newest_text(store) == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1"]


def crash_between_renames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save step 1 once more, and die when the old folder has given up its name and the new one does not have it yet."""

    def rename(path: Path, target: Path) -> None:
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        os.rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        CheckpointStore(folder).save(1, writer("new"))
    assert not (folder / "step_1").exists()


def test_a_crash_while_a_step_is_replaced_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CheckpointStore(tmp_path).save(1, writer("old"))
    crash_between_renames(tmp_path, monkeypatch)
    store = CheckpointStore(tmp_path)
    assert store.steps() == [1] and newest_text(store) == "old"


@pytest.mark.parametrize(("step", "text"), [(1, "again"), (2, "old")])
def test_the_next_save_tidies_up_after_that_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, text: str
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("old"))
    crash_between_renames(tmp_path, monkeypatch)
    store.save(step, writer("again"))
    assert not list(tmp_path.glob("*.old"))
    assert (store.load(1).folder / "weights.bin").read_text() == text
    assert store.load(1).folder.name == "step_1"


def test_a_rollback_after_that_crash_discards_the_old_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("old"))
    crash_between_renames(tmp_path, monkeypatch)
    store.discard_after(0)
    assert store.steps() == []


@pytest.mark.parametrize("damage", ["change", "delete", "manifest", "garbage"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))
    store.save(2, writer("two"))
    folder = tmp_path / "step_2"
    match damage:
        case "change":
            (folder / "weights.bin").write_text("twO")
        case "delete":
            (folder / "orchestrator" / "queue.json").unlink()
        case "manifest":
            (folder / "manifest.json").unlink()
        case _:
            (folder / "manifest.json").write_text("{")
    assert newest_text(store) == "one"
    with pytest.raises(ConfigurationError, match="step 2"):
        store.load(2)


def test_a_checkpoint_of_another_format_is_refused_and_not_skipped(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))
    store.save(2, writer("two"))
    manifest = tmp_path / "step_2" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    for read in (store.newest_intact, lambda: store.load(2)):
        with pytest.raises(ConfigurationError, match=r"step 2 .* has format 2, this version reads 1; use the version"):
            read()
    assert store.load(1).step == 1


def test_a_writer_that_fails_leaves_the_previous_checkpoint_and_no_rubbish(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))

    def write(folder: Path) -> None:
        (folder / "weights.bin").write_text("half")
        raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        store.save(2, write)
    assert newest_text(store) == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1"]


def test_a_full_disk_is_one_clear_sentence(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))

    def write(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Unavailable, match=r"no space left for the checkpoint of step 2.*older checkpoints are intact"):
        store.save(2, write)
    assert newest_text(store) == "one"


def test_a_rolled_back_run_discards_later_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    for step in (1, 2, 3):
        store.save(step, writer(str(step)))
    store.discard_after(1)
    assert store.steps() == [1] and newest_text(store) == "1"
    assert (tmp_path / "latest").read_text().strip() == "step_1"


def test_nothing_is_the_latest_once_every_checkpoint_is_discarded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("1"))
    store.discard_after(0)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_starts_again_behind_a_damaged_checkpoint_keeps_what_it_saves(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(9, writer("nine"))
    (tmp_path / "step_9" / "weights.bin").write_text("niNe")
    assert store.newest_intact() is None
    store.save(2, writer("two"))
    assert newest_text(store) == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_2"]
    assert (tmp_path / "latest").read_text().strip() == "step_2"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from searchrl.storage import durable_files
    from services.trainer.checkpoints import checkpoint_store
    from services.trainer.checkpoints.checkpoint_store import CheckpointStore

    calls = 0
    moment = int(sys.argv[2])

    def die_at_moment(original):
        def counted(*arguments):
            global calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)
        return counted

    counted = die_at_moment(durable_files.fsync_path)
    checkpoint_store.fsync_path = durable_files.fsync_path = counted
    checkpoint_store.sha256_file = die_at_moment(durable_files.sha256_file)

    def write(folder: Path) -> None:
        (folder / "weights.bin").write_text("two")

    CheckpointStore(Path(sys.argv[1])).save(2, write)
"""


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6])
def test_kill_during_save_leaves_a_loadable_checkpoint(tmp_path: Path, moment: int) -> None:
    """The process dies at its n-th flush or checksum: before the rename the old checkpoint loads, then the new."""
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))
    program = textwrap.dedent(KILLED)
    died = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(moment)], cwd=os.getcwd(), timeout=60, check=False
    )
    assert died.returncode == -signal.SIGKILL
    # 1 checksum, 2 file flushes, 1 folder flush, then rename, then flushes of the parent and of the pointer
    assert newest_text(store) == ("one" if moment <= 4 else "two")
    store.save(3, writer("three"))
    assert newest_text(store) == "three"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB, smaller than a checkpoint."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("SMALL DISK TESTS NOT RUN: only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_every_way_to_say_full_is_understood(error: Exception) -> None:
    with (
        pytest.raises(Unavailable, match=r"^no space left for the thing; make some$"),
        explain_disk_full("the thing", "make some", SafetensorError),
    ):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), SafetensorError("header too large")])
def test_other_failures_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_disk_full("the thing", "make some", SafetensorError):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_writing_torch_state_to_a_full_device_says_so() -> None:
    with pytest.raises(OSError) as caught:
        write_state(Path("/dev/full"), {"tensor": torch.zeros(100_000)})
    assert caught.value.errno == errno.ENOSPC


def test_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_state(tmp_path / "state.pt", {"tensor": torch.arange(70_000), "steps": 3})
    state = read_state(tmp_path / "state.pt")
    assert torch.equal(state["tensor"], torch.arange(70_000)) and state["steps"] == 3


def test_a_learner_that_does_not_fit_leaves_the_checkpoint_before_and_no_rubbish(
    small_disk: Path, tmp_path: Path
) -> None:
    learner = Learner.from_folder(write_tiny_model(tmp_path / "model"), LearnerSettings(), 0)
    store = CheckpointStore(small_disk)
    store.save(1, learner.save)
    used = sum(path.stat().st_size for path in small_disk.rglob("*") if path.is_file())
    (small_disk / "ballast").write_bytes(b"0" * (380 * 1024 - used))
    with pytest.raises(Unavailable, match=r"no space left for the checkpoint of step 2 .*older checkpoints are intact"):
        store.save(2, learner.save)
    newest = store.newest_intact()
    assert newest is not None and newest.step == 1
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "latest", "step_1"]
    (small_disk / "ballast").unlink()
    assert store.save(2, learner.save).step == 2


def test_the_best_checkpoint_is_kept_beside_the_newest_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    assert store.best_step() is None
    for step in range(1, 4):
        store.save(step, writer(str(step)))
        store.name_best(1 if step < 3 else 3)
    assert store.steps() == [1, 3] and CheckpointStore(tmp_path).best_step() == 3
    store.save(4, writer("four"))
    assert store.steps() == [3, 4] and (tmp_path / "best").read_text() == "step_3\n"


def test_a_rollback_before_the_best_checkpoint_leaves_none_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in range(1, 4):
        store.save(step, writer(str(step)))
    store.name_best(3)
    store.discard_after(1)
    assert store.best_step() is None and not (tmp_path / "best").exists()
    store.name_best(2)  # removed above
    assert store.best_step() is None
