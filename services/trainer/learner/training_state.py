"""What besides the weights must be kept to continue a run bit for bit?"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of the python, numpy and torch generators; JSON for the first two, tensors for the last."""
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
    """Set the generators to what ``random_state`` returned."""
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; readable without running code from the file."""
    torch.save(state, path)


def read_state(path: Path) -> dict[str, Any]:
    """Read what ``write_state`` wrote, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
