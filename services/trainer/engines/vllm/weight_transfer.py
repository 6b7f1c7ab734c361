"""Moves published weights to vLLM servers: staged once per version, then sent to each server.

The receiving half runs inside vLLM (``plugin/weight_transfer_plugin.py``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from searchrl.errors import ConfigurationError, NotFound, ServiceError
from searchrl.storage.durable_files import atomic_path, explain_disk_full, sha256_file
from services.trainer.engines.vllm.client import VllmClient
from services.trainer.learner.reports import LogprobProbe, PublishedWeights

PLUGIN = Path(__file__).parent / "plugin"
"""The folder that vLLM needs on ``PYTHONPATH``."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """The weights of one version, ready to be sent to any server at any time.

    Attributes:
        updates: what ``update_weights`` of the backend is called with, one after the other.
        bytes: what a server receives.
        tensors: what is sent, if it is not in a file.
    """

    version: int
    fingerprint: str
    updates: tuple[Mapping[str, Any], ...]
    bytes: int
    probe: LogprobProbe | None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a server calls these weights."""
        return f"v{self.version}:{self.fingerprint}"


UPDATE_ENVIRONMENT: Mapping[str, str] = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(PLUGIN)}
"""Variables of servers whose weights are replaced: they add the routes and the backends."""


class WeightTransfer(Protocol):
    """One way for weights to reach a server.

    Attributes:
        backend: its name, in vLLM's configuration if the weights of a server are replaced.
        arguments: the flags of a server that receives weights this way.
        environment: the variables of such a server.
    """

    backend: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def stage(self, weights: PublishedWeights) -> StagedWeights:
        """Prepare weights for sending; runs in a thread.

        Raises:
            searchrl.errors.ConfigurationError: there is no room for them.
        """
        ...

    async def check(self, client: VllmClient) -> None:
        """Check that a server can receive weights this way.

        Raises:
            searchrl.errors.ConfigurationError: it was not started for that.
        """
        ...

    async def connect(self, client: VllmClient) -> "Connection":
        """Prepare a server for one update."""
        ...

    def keep_only(self, kept: Sequence[StagedWeights]) -> None:
        """Remove what was staged, except for these weights."""
        ...

    def close(self) -> None:
        """Remove everything that was staged."""
        ...


class Connection(Protocol):
    """A server that is ready to receive."""

    async def send(self, staged: StagedWeights) -> None:
        """Send the weights to the server, whose update has been started."""
        ...


def converted(weights: PublishedWeights, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors in the precision of the servers; None: in their own."""
    return {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in weights.tensors.items()}


def tensor_layout(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """The names, dtypes and shapes of tensors, as the plugin reads them."""
    return {
        "names": list(tensors),
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
        "shapes": [list(tensor.shape) for tensor in tensors.values()],
    }


def update_arguments(backend: str) -> tuple[str, ...]:
    """The flags of a server whose weights are replaced."""
    return ("--weight-transfer-config", json.dumps({"backend": backend}))


async def check_updates(client: VllmClient, transfer: WeightTransfer) -> None:
    """Check that the weights of a server can be replaced.

    Raises:
        ConfigurationError: it was not started for that.
    """
    try:
        await client.served_weights()
    except NotFound as error:
        raise ConfigurationError(
            f"{client.base_url} has no routes that replace weights: start it with VLLM_SERVER_DEV_MODE=1"
        ) from error
    try:
        await transfer.connect(client)
    except ServiceError as error:
        raise ConfigurationError(
            f"{client.base_url} cannot receive weights by {transfer.backend}; see 'Rollouts on vLLM' in "
            f"docs/training.md for how it must be started: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class FileConnection:
    """A server that reads files."""

    client: VllmClient

    async def send(self, staged: StagedWeights) -> None:
        """See ``Connection``."""
        for update in staged.updates:
            await self.client.update(update)


class SharedFsTransfer:
    """Writes a safetensors file per version, which servers read from a disk that they share with the trainer.

    A server that was lost reads the newest file when it is back, without the learner.

    Args:
        dtype: the servers' precision. Weights are converted before they are written: the file is half as large then.
    """

    backend = "trainer_shared_fs"
    arguments = update_arguments(backend)
    environment: Mapping[str, str] = UPDATE_ENVIRONMENT

    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder = folder.absolute()
        self._dtype = DTYPES.get(dtype)

    def stage(self, weights: PublishedWeights) -> StagedWeights:
        """See ``WeightTransfer``."""
        path = self._folder / f"weights-{weights.version:09d}.safetensors"
        tensors = converted(weights, self._dtype)
        with explain_disk_full(f"the weights in {self._folder}", "free some space and resume", SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not durable: after a crash of the machine nobody reads the file again.
            with atomic_path(path, durable=False) as part:
                save_file(tensors, part)
        update = {"path": str(path), "sha256": sha256_file(path)}
        return StagedWeights(weights.version, weights.fingerprint, (update,), path.stat().st_size, weights.probe)

    async def check(self, client: VllmClient) -> None:
        """See ``WeightTransfer``."""
        await check_updates(client, self)

    async def connect(self, client: VllmClient) -> FileConnection:
        """See ``WeightTransfer``."""
        await client.init_transfer({})
        return FileConnection(client)

    def keep_only(self, kept: Sequence[StagedWeights]) -> None:
        """See ``WeightTransfer``."""
        self._remove({str(update["path"]) for staged in kept for update in staged.updates})

    def close(self) -> None:
        """See ``WeightTransfer``."""
        self._remove(set())

    def _remove(self, kept: set[str]) -> None:
        for path in self._folder.glob("weights-*.safetensors"):
            if str(path) not in kept:
                path.unlink(missing_ok=True)
