"""The ranks that train one set of models together: joins them in a process group, and exchanges small values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Value = TypeVar("Value")
STEP_SECONDS = 1800.0
"""For one job of the ranks, and for each of its collectives: in one, a rank waits for others whose shares take longer.

Longer counts as a hang. A lower value notices one sooner, and limits the size of a batch.
"""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all ranks. Each rank runs the same calls in the same order, because they meet in collectives.

    Attributes:
        rank: from 0.
        size: 1 if the models are in one process.
    """

    rank: int = 0
    size: int = 1

    def share(self, shares: Sequence[Value]) -> Value:
        """This rank's share, of one per rank."""
        return shares[self.rank]

    def gather(self, value: Value) -> list[Value]:
        """The value of every rank, in the order of the ranks; the same list on all of them."""
        if self.size == 1:
            return [value]
        values: list[Value] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)


ALONE = Ranks()


def join_ranks(ranks: Ranks, store: Store, device: str, seconds: float = STEP_SECONDS) -> None:
    """Join the other ranks; a collective that takes longer than ``seconds`` fails."""
    # Gloo as well on GPUs: small values, and what is offloaded to main memory, travel between CPUs.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    timeout = timedelta(seconds=seconds)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=timeout)


def device_mesh(ranks: Ranks, device: str) -> DeviceMesh:
    """The ranks as a mesh for sharding; a process without others becomes a group of its own."""
    if not dist.is_initialized():
        if ranks.size > 1:
            raise ValueError(f"rank {ranks.rank} of {ranks.size} has not joined the others")
        join_ranks(ranks, HashStore(), device)
    if ":" in device:
        torch.cuda.set_device(device)  # the mesh takes the current GPU
    return init_device_mesh(device.partition(":")[0], (ranks.size,))
