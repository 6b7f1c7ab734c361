"""Saves and restores what a bit-exact resume needs besides the weights: random generators and training state."""

import json
import random
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of the python, numpy and torch generators.

    The first two are JSON text and the last one tensors, so that the file can be read without running code from it.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": json.dumps([version, list(internal), gauss]),
        "numpy": json.dumps([str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what ``random_state`` returned, on as many GPUs as both machines have."""
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state.get("cuda", [])[: torch.cuda.device_count()])


class _Sink:
    """A file for ``torch.save``: every byte is written, and the error of a failed write is kept.

    Torch ignores how many bytes a write took, and replaces its error by one of its own. One system call writes at most
    2 GiB, and less where the disk is nearly full.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return size

    def flush(self) -> None:
        self._file.flush()


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; readable without running code from the file.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    # unbuffered, so that a full disk raises inside ``write``, where the sink sees it, and not when the file is closed
    with path.open("wb", buffering=0) as file:
        sink = _Sink(file)
        try:
            torch.save(state, cast(BinaryIO, sink))
        except RuntimeError as error:
            raise (sink.error or error) from error


def read_state(path: Path) -> dict[str, Any]:
    """Read what ``write_state`` wrote, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
