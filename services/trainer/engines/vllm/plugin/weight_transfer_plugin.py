# pyright: reportMissingImports=false, reportPrivateImportUsage=false
"""Adds backends of weight transfer to vLLM: files on a shared disk, broadcasts, and memory that the trainer shares.

It is imported in vLLM's environment, which has neither searchrl nor services, by the entry point in the folder beside
it: whoever starts vLLM puts the folder of this module on ``PYTHONPATH``.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from shared_buffers import open_shared
from torch import distributed as dist
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


def register() -> None:
    """Name the backends to vLLM, which calls this in each of its processes, in some of them twice."""
    backends = {
        "trainer_shared_fs": SharedFsTransferEngine,
        "trainer_gloo": CollectiveTransferEngine,
        "trainer_nccl": CollectiveTransferEngine,
        "trainer_ipc": IpcTransferEngine,
    }
    for name, engine in backends.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, engine)


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Files need no connection."""


@dataclass
class WeightFile(WeightTransferUpdateInfo):
    """A safetensors file with weights under their Hugging Face names."""

    path: str
    sha256: str


@dataclass
class Group(WeightTransferInitInfo):
    """The process group of the trainer (rank 0) and all workers of this server."""

    kind: str
    host: str
    port: int
    size: int
    seconds: float


@dataclass
class Broadcasts(WeightTransferUpdateInfo):
    """The tensors that the trainer broadcasts, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


@dataclass
class SharedMemory(WeightTransferInitInfo):
    """The memory that the trainer fills, part by part: one handle for each worker of this server."""

    handles: list[dict[str, Any]]


@dataclass
class SharedTensors(WeightTransferUpdateInfo):
    """The tensors that are in the shared memory now, each from its offset in bytes."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class CheckpointTransferEngine(WeightTransferEngine[Any, Any]):
    """Loads weights in their Hugging Face form, layer by layer, in vLLM's own way of reloading a checkpoint."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # the base class synchronizes an accelerator, which a CPU does not have
            torch.accelerator.synchronize()

    def worker_number(self) -> int:
        """Return the number of this worker among all of the server, from 0."""
        parallel = self.parallel_config
        return parallel.data_parallel_index * parallel.world_size + parallel.rank

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            repack_output_layers(self.model)

    def shutdown(self) -> None:
        pass


class SharedFsTransferEngine(CheckpointTransferEngine):
    """Reads a file that the trainer has written; every worker of a server reads it by itself."""

    init_info_cls = NoInitInfo
    update_info_cls = WeightFile

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def receive_weights(self, update_info: WeightFile) -> None:
        """Load the file.

        Raises:
            ValueError: it is not the file that the trainer wrote, or not complete.
        """
        with Path(update_info.path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != update_info.sha256:
            raise ValueError(f"{update_info.path} has the SHA-256 {digest}, not {update_info.sha256}")
        with safe_open(update_info.path, framework="pt", device=str(self.device)) as weights:
            # one tensor at a time: vLLM buffers the tensors of one layer and frees them once the layer is complete
            self.model.load_weights((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118


class CollectiveTransferEngine(CheckpointTransferEngine):
    """Receives broadcasts of the trainer, in a group of its own for each update."""

    init_info_cls = Group
    update_info_cls = Broadcasts
    _group: Any = None

    def init_transfer_engine(self, init_info: Group) -> None:
        limit = timedelta(seconds=init_info.seconds)
        store = dist.TCPStore(init_info.host, init_info.port, None, False, limit)
        rank = 1 + self.worker_number()
        if init_info.kind == "gloo":
            self._group = dist.ProcessGroupGloo(store, rank, init_info.size, limit)
        else:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._group = dist.ProcessGroupNCCL(store, rank, init_info.size, options)

    def receive_weights(self, update_info: Broadcasts) -> None:
        self.model.load_weights(self._receive(update_info))

    def _receive(self, update_info: Broadcasts) -> Iterator[tuple[str, torch.Tensor]]:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        for name, dtype, shape in zip(update_info.names, update_info.dtypes, update_info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            self._group.broadcast([tensor], options).wait()
            yield name, tensor

    def shutdown(self) -> None:
        self._group = None


class IpcTransferEngine(CheckpointTransferEngine):
    """Copies weights out of memory that a trainer on the same machine shares."""

    init_info_cls = SharedMemory
    update_info_cls = SharedTensors
    _memory: torch.Tensor | None = None

    def init_transfer_engine(self, init_info: SharedMemory) -> None:
        self._memory = None  # before the same memory is opened again
        self._memory = open_shared(init_info.handles[self.worker_number()])

    def receive_weights(self, update_info: SharedTensors) -> None:
        self.model.load_weights(self._copies(update_info))

    def _copies(self, update_info: SharedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._memory is not None
        places = zip(update_info.names, update_info.dtypes, update_info.shapes, update_info.offsets, strict=True)
        for name, dtype_name, shape, offset in places:
            dtype = getattr(torch, dtype_name)
            size = torch.Size(shape).numel() * dtype.itemsize
            # A copy: vLLM keeps the tensors of a layer until it is complete, and the trainer fills the memory again.
            copy = torch.empty(shape, dtype=dtype, device=self.device)
            copy.copy_(self._memory[offset : offset + size].view(dtype).view(shape))
            yield name, copy

    def shutdown(self) -> None:
        self._memory = None


@torch.no_grad()
def repack_output_layers(model: torch.nn.Module) -> None:
    """Pack output layers again from their weights.

    On CPUs an output layer computes with a packed copy of its weight. If the weight is tied to the embedding, a reload
    replaces the embedding and leaves the copy, so that the old output layer would be used with the new layers below it.
    """
    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            quant_method: Any = layer.quant_method
            quant_method.process_weights_after_loading(layer)
