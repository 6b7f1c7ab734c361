"""Serves each version of a LoRA adapter beside the model that the servers hold: only its files are sent.

A version is loaded under a new name from a new folder, and turns name it as their model. So a push interrupts nothing:
turns in flight end under the adapter that they started with, which is unloaded after the last of them.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from searchrl.agent.types import Generation, Sampling
from searchrl.errors import ConfigurationError, InvalidRequest, NotFound, ServiceError, Unavailable
from searchrl.storage.durable_files import atomic_path, atomic_write, explain_disk_full
from services.trainer.engines.base import EngineOutOfDate
from services.trainer.engines.vllm.client import VllmClient
from services.trainer.engines.vllm.replica import Replica
from services.trainer.engines.vllm.weight_transfer import StagedWeights
from services.trainer.learner.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from services.trainer.learner.reports import PublishedWeights

logger = logging.getLogger(__name__)

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM can be started for; adapters of smaller ranks run as well."""
VERSIONS_AT_ONCE = 2
"""The adapter of turns in flight and the newest. Each takes memory of the GPU, and vLLM would move a third one in and
out of it at every step."""


@dataclass(frozen=True, slots=True)
class AdapterConnection:
    """A server that loads adapters."""

    client: VllmClient

    async def send(self, staged: StagedWeights) -> None:
        """See ``Connection``."""
        await self.client.load_adapter(staged.name, str(staged.updates[0]["path"]))


class AdapterTransfer:
    """Writes a folder per version in peft's own format, on a disk that the servers share with the trainer.

    Args:
        rank: of the adapter.

    Raises:
        ConfigurationError: vLLM serves no adapter of this rank.
    """

    backend = "lora_adapter"
    environment: Mapping[str, str] = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}

    def __init__(self, folder: Path, rank: int) -> None:
        largest = next((served for served in SERVED_RANKS if rank <= served), None)
        if largest is None:
            raise ConfigurationError(
                f"learner.adapter.rank {rank} is over {SERVED_RANKS[-1]}, the largest that vLLM serves as an adapter: "
                "lower it, or leave out engine.weight_transfer.backend lora_adapter"
            )
        self.folder = folder.absolute()
        self.arguments: tuple[str, ...] = (
            "--enable-lora",
            *("--max-lora-rank", str(largest)),
            *("--max-loras", str(VERSIONS_AT_ONCE)),
        )

    def stage(self, weights: PublishedWeights) -> StagedWeights:
        """See ``WeightTransfer``."""
        # A name for these bytes alone: a server that another process of this run gave a version of the same number may
        # still read its files.
        folder = self.folder / f"adapter-{weights.version:09d}-{weights.fingerprint[:16]}"
        with explain_disk_full(f"the adapter in {self.folder}", "free some space and resume", SafetensorError):
            folder.mkdir(parents=True, exist_ok=True)
            # Not durable: after a crash of the machine nobody reads the files again.
            with atomic_path(folder / ADAPTER_FILE, durable=False) as part:
                save_file({name: tensor.contiguous() for name, tensor in weights.tensors.items()}, part)
            atomic_write(folder / ADAPTER_CONFIG_FILE, json.dumps(weights.adapter_config), durable=False)
        size = sum(path.stat().st_size for path in folder.iterdir())
        return StagedWeights(weights.version, weights.fingerprint, ({"path": str(folder)},), size, weights.probe)

    async def check(self, client: VllmClient) -> None:
        """See ``WeightTransfer``."""
        try:
            await client.unload_adapter("")  # is refused, unless there is no such route
        except NotFound as error:
            raise ConfigurationError(
                f"{client.base_url} cannot load adapters: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and "
                f"{' '.join(self.arguments)}"
            ) from error
        except InvalidRequest:
            return

    async def connect(self, client: VllmClient) -> AdapterConnection:
        """See ``WeightTransfer``."""
        return AdapterConnection(client)

    def keep_only(self, kept: Sequence[StagedWeights]) -> None:
        """See ``WeightTransfer``; a server may read the files of an adapter again as long as a turn uses it."""
        self._remove({str(update["path"]) for staged in kept for update in staged.updates})

    def close(self) -> None:
        """See ``WeightTransfer``."""
        self._remove(set())

    def _remove(self, kept: set[str]) -> None:
        for folder in self.folder.glob("adapter-*"):
            if str(folder) not in kept:
                rmtree(folder, ignore_errors=True)


class AdapterReplica(Replica):
    """A server that is given one adapter after the other, and holds an older one for as long as a turn needs it."""

    def __init__(self, client: VllmClient, transfer: AdapterTransfer, **settings: Any) -> None:
        super().__init__(client, transfer, **settings)
        self._folder = transfer.folder
        self._turns: list[StagedWeights] = []  # of each turn in flight
        self._turn_ended = asyncio.Event()

    def in_use(self) -> list[StagedWeights]:
        """See ``Replica``."""
        return list(self._turns)

    async def _sample(
        self, staged: StagedWeights, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str
    ) -> Generation:
        self._turns.append(staged)
        try:
            return await self.client.generate(prompt_ids, sampling, rollout_id, staged.name, staged.name)
        except NotFound as error:  # a server of somebody else was restarted
            raise Unavailable(f"{self.client.base_url} has lost the adapter {staged.name}: {error}", None) from error
        finally:
            self._turns.remove(staged)
            self._turn_ended.set()
            if staged is not self.served:
                self._work.set()  # it may be unloaded now

    async def _score(self, staged: StagedWeights | None, ids: Sequence[int]) -> list[float]:
        return await self.client.score(ids, "" if staged is None else staged.name)

    async def _check_process(self, staged: StagedWeights) -> None:
        if self.server is None and staged.name not in await self.client.adapters():
            raise Unavailable(f"{self.client.base_url} does not have the adapter {staged.name} any more", None)

    async def _drain(self) -> None:
        """Wait until no turn needs an older adapter than the one before: there is room for that and a new one."""
        while any(staged is not self.served for staged in self._turns):
            self._turn_ended.clear()
            await self._turn_ended.wait()

    async def _synchronize(self, staged: StagedWeights) -> None:
        held = await self.client.adapters()
        if staged.name in held and self.failures:  # what did not prove itself is loaded again
            await self.client.unload_adapter(staged.name)
        if staged.name not in held or self.failures:
            connection = await self._transfer.connect(self.client)
            await connection.send(staged)
            if staged.name not in await self.client.adapters():
                raise EngineOutOfDate(f"it was given the adapter {staged.name} and does not have it")
        await self._prove(staged)
        await self._unload_all_but([staged, *self._turns])

    async def _tidy(self) -> None:
        await self._unload_all_but([self.served, *self._turns])

    async def _leave(self) -> None:
        await self._unload_all_but([])

    async def _unload_all_but(self, kept: Sequence[StagedWeights | None]) -> None:
        """Unload the adapters of this run that nothing uses; what fails is tried again after the next push."""
        names = {staged.name for staged in kept if staged is not None}
        try:
            for name, folder in (await self.client.adapters()).items():
                if name not in names and Path(folder).parent == self._folder:  # not those of other users of a server
                    await self.client.unload_adapter(name)
        except ServiceError as error:
            logger.warning("%s keeps adapters that nothing uses: %s", self.client.base_url, error)
