"""Saves and restores sharded weights and moments, each rank its own part, with torch.distributed.checkpoint.

Every rank writes files of its own, and rank 0 a plan that says where each part is. A model that is sharded over another
number of ranks, or not at all, reads the parts that it needs.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from searchrl.errors import ConfigurationError
from services.trainer.learner.optimizers import OptimizerState

PLAN_FILE = ".metadata"
WEIGHTS = "weights"


def save_shards(
    folder: Path, tensors: Mapping[str, Tensor], optimizer: OptimizerState, group: dist.ProcessGroup
) -> None:
    """Write this rank's part; all ranks must call it, and meet in ``group``."""
    state: dict[str, Tensor] = {f"{WEIGHTS}/{name}": tensor for name, tensor in tensors.items()}
    for kind, parameters in optimizer.items():
        for name, moments in parameters.items():
            state |= {f"{kind}/{key}/{name}": moment for key, moment in moments.items()}
    # Not flushed here: the checkpoint's files are flushed together once all parts have arrived.
    writer = FileSystemWriter(folder, sync_files=False)
    save(state, storage_writer=writer, process_group=group)


def holds_shards(folder: Path) -> bool:
    """Whether ``save_shards`` wrote this folder."""
    return (folder / PLAN_FILE).is_file()


def load_shards(folder: Path, tensors: Mapping[str, Tensor]) -> OptimizerState:
    """Read this rank's part into the tensors, in place, and return the optimizers' moments, sharded in the same way.

    Raises:
        ConfigurationError: the folder belongs to another model.
    """
    reader = FileSystemReader(folder)
    saved = {
        name: tuple(entry.size)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    prefix = f"{WEIGHTS}/"
    shapes = {name.removeprefix(prefix): shape for name, shape in saved.items() if name.startswith(prefix)}
    check_same_shapes(shapes, tensors, folder)
    state: dict[str, Tensor] = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    optimizer: OptimizerState = {}
    for path in saved.keys() - state.keys():
        kind, key, name = path.split("/", 2)
        like = tensors[name]
        moment = torch.zeros_like(like) if saved[path] == tuple(like.shape) else torch.zeros(saved[path])
        state[path] = optimizer.setdefault(kind, {}).setdefault(name, {})[key] = moment
    with warnings.catch_warnings():
        # a process without a group, which has no sharded tensors, reads everything by itself; torch warns of that
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(state, storage_reader=reader, no_dist=not dist.is_initialized())
    return optimizer


def check_same_shapes(given: Mapping[str, Sequence[int]], expected: Mapping[str, Tensor], source: Path) -> None:
    """Check that tensors belong to the same model.

    Raises:
        ConfigurationError: a name is missing or unknown, or a shape differs.
    """
    odd = sorted(set(given) ^ set(expected))
    if odd:
        raise ConfigurationError(f"{source} belongs to another model: only one of the two has {odd[0]}")
    for name, shape in given.items():
        if tuple(shape) != tuple(expected[name].shape):
            shapes = f"{tuple(shape)} instead of {tuple(expected[name].shape)}"
            raise ConfigurationError(f"{source} belongs to another model: {name} has shape {shapes}")
