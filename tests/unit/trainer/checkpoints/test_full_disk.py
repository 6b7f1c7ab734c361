"""A full disk is reported in one sentence and damages no checkpoint, whichever library was writing."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from searchrl.errors import Unavailable
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.checkpoints.full_disk import explain_disk_full
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.training_state import read_state, write_state
from tests.fakes.train_rows import write_tiny_model


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
        explain_disk_full("the thing", "make some"),
    ):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), SafetensorError("header too large")])
def test_other_failures_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_disk_full("the thing", "make some"):
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


def test_c42_a_learner_that_does_not_fit_leaves_the_checkpoint_before_and_no_rubbish(
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
