"""Copies published weights to servers on the same machine through memory that both see, one part after the other.

On a GPU it is memory of that GPU, shared by CUDA's handles. On CPUs it is a file in memory without a name, which ends
with the trainer, however that ends.
"""

import asyncio
import base64
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from searchrl.errors import ConfigurationError, Unavailable
from services.trainer.engines.vllm.client import VllmClient
from services.trainer.engines.vllm.weight_transfer import (
    DTYPES,
    UPDATE_ENVIRONMENT,
    StagedWeights,
    check_updates,
    converted,
    tensor_layout,
    update_arguments,
)
from services.trainer.learner.reports import PublishedWeights

PART_BYTES = 256 << 20
"""The shared memory of each server, unless one tensor is larger. Each part costs one request of a few milliseconds."""
ALIGNMENT = 256  # bytes; that of the GPU's own allocations, and a multiple of every dtype's size


class IpcTransfer:
    """Keeps the newest weights in the trainer's memory, and hands them to each server through memory of its own.

    Args:
        dtype: the servers' precision; weights are converted before they are shared.
        device: where the shared memory is: ``cpu``, or a GPU.

    Raises:
        ConfigurationError: there is no such device.
    """

    backend = "trainer_ipc"
    arguments = update_arguments(backend)
    environment: Mapping[str, str] = UPDATE_ENVIRONMENT

    def __init__(self, dtype: str, device: str) -> None:
        self._dtype = DTYPES.get(dtype)
        self._device = torch.device(device)
        if self._device.type not in ("cpu", "cuda"):
            raise ConfigurationError(f"engine.weight_transfer.device {device}: ipc shares memory of cpu or of a GPU")
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError(
                f"engine.weight_transfer.device is {device}, and PyTorch sees no GPU here: with servers on CPUs, set "
                "it to cpu"
            )
        self._part_bytes = PART_BYTES
        self._buffers: weakref.WeakKeyDictionary[VllmClient, SharedBuffer] = weakref.WeakKeyDictionary()

    def stage(self, weights: PublishedWeights) -> StagedWeights:
        """See ``WeightTransfer``."""
        tensors = converted(weights, self._dtype)
        self._part_bytes = max(self._part_bytes, *(aligned(tensor.nbytes) for tensor in tensors.values()))
        size = sum(tensor.nbytes for tensor in tensors.values())
        updates = tuple(split_into_parts(tensors, self._part_bytes))
        return StagedWeights(weights.version, weights.fingerprint, updates, size, weights.probe, tensors)

    async def check(self, client: VllmClient) -> None:
        """See ``WeightTransfer``."""
        await check_updates(client, self)

    async def connect(self, client: VllmClient) -> "SharedConnection":
        """See ``WeightTransfer``."""
        buffer = self._buffers.get(client)
        if buffer is None or buffer.size < self._part_bytes:
            buffer = SharedBuffer(self._part_bytes, self._device, await client.worker_count())
            self._buffers[client] = buffer
        await client.init_transfer({"handles": buffer.handles})
        return SharedConnection(client, buffer)

    def keep_only(self, kept: Sequence[StagedWeights]) -> None:
        """See ``WeightTransfer``; the replicas drop the earlier weights with their reference to them."""

    def close(self) -> None:
        """See ``WeightTransfer``."""
        self._buffers.clear()


class SharedBuffer:
    """Memory that the workers of one server open, for as long as the run lasts.

    PyTorch counts for each handle of a GPU whether it is still open, so every worker gets one of its own.

    Attributes:
        handles: what ``plugin/shared_buffers.py`` opens it by, one for each worker.

    Raises:
        Unavailable: there is no room for it.
    """

    def __init__(self, size: int, device: torch.device, workers: int) -> None:
        self.size = size
        self._device = device
        try:
            if device.type == "cpu":
                self._bytes, self.handles = self._share_memory(workers)
            else:
                self._bytes = torch.empty(size, dtype=torch.uint8, device=device)
                self.handles = [self._share_gpu_memory() for _ in range(workers)]
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"{size >> 20} MiB of {device} cannot be shared with a server: {error}", None) from error

    def fill(self, tensors: Mapping[str, Tensor], update: Mapping[str, Any]) -> None:
        """Copy the tensors of one part to their offsets, and wait until they are there."""
        for name, offset in zip(update["names"], update["offsets"], strict=True):
            tensor = tensors[name]
            self._bytes[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _share_memory(self, workers: int) -> tuple[Tensor, list[dict[str, Any]]]:
        file = os.memfd_create("searchrl-weights")
        weakref.finalize(self, os.close, file)
        os.ftruncate(file, self.size)
        path = f"/proc/{os.getpid()}/fd/{file}"
        memory = torch.from_file(path, shared=True, size=self.size, dtype=torch.uint8)
        return memory, [{"path": path, "size": self.size}] * workers

    def _share_gpu_memory(self) -> dict[str, Any]:
        shared = self._bytes.untyped_storage()._share_cuda_()
        gpu, memory, size, offset, counter, counter_offset, event, has_event = shared
        return {
            "gpu": gpu,
            "memory": encoded(memory),
            "size": size,
            "offset": offset,
            "counter": encoded(counter),
            "counter_offset": counter_offset,
            "event": encoded(event),
            "has_event": has_event,
        }


class SharedConnection:
    """A server that has opened its memory."""

    def __init__(self, client: VllmClient, buffer: SharedBuffer) -> None:
        self._client = client
        self._buffer = buffer

    async def send(self, staged: StagedWeights) -> None:
        """See ``Connection``."""
        for update in staged.updates:
            await asyncio.to_thread(self._buffer.fill, staged.tensors, update)
            await self._client.update(update)  # answered once the server has copied this part


def split_into_parts(tensors: Mapping[str, Tensor], part_bytes: int) -> list[dict[str, list[Any]]]:
    """Lay the tensors out in as few parts as their order allows; none may be larger than a part."""
    parts: list[dict[str, Tensor]] = [{}]
    offsets: list[list[int]] = [[]]
    end = 0
    for name, tensor in tensors.items():
        if end + tensor.nbytes > part_bytes:
            parts.append({})
            offsets.append([])
            end = 0
        parts[-1][name] = tensor
        offsets[-1].append(end)
        end = aligned(end + tensor.nbytes)
    return [{**tensor_layout(part), "offsets": places} for part, places in zip(parts, offsets, strict=True)]


def aligned(size: int) -> int:
    """The next multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def encoded(content: bytes) -> str:
    """Bytes as text, for JSON."""
    return base64.b64encode(content).decode()
