"""Tests how training state reaches the disk."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.learner.training_state import read_state, write_state


class ShortWrites(io.FileIO):
    """A file of which one system call takes few bytes, as Linux takes at most 2 GiB."""

    def write(self, data: Any, /) -> int:
        return super().write(memoryview(data)[:1000])


def test_a_tensor_larger_than_one_system_call_writes_is_restored_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"moments": torch.arange(5000, dtype=torch.float64), "steps": 3}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: ShortWrites(path, "w"))
        write_state(tmp_path / "state.pt", state)
    restored = read_state(tmp_path / "state.pt")
    assert torch.equal(restored["moments"], state["moments"]) and restored["steps"] == 3


def test_the_error_of_a_full_disk_is_the_one_that_is_raised() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_state(Path("/dev/full"), {"moments": torch.zeros(1000)})
