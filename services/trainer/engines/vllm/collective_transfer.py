"""Broadcasts published weights to the workers of a server: gloo between CPUs, NCCL between GPUs; no shared disk.

Each update of a server has a group of its own, of the trainer (rank 0) and the server's workers, so that nothing of a
failed update is left for the next one. A collective blocks its thread until every rank takes part. It therefore runs in
a thread that does not keep the process alive, and ends with an error after ``seconds`` if a worker never comes.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import distributed as dist

from searchrl.errors import Unavailable
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


class CollectiveTransfer:
    """Keeps the newest weights in memory and broadcasts them to one server at a time.

    Args:
        kind: gloo sends from the CPU; nccl from ``device``, which the learner may share.
        host: address of this process that the servers reach.
        dtype: the servers' precision; weights are converted before they are sent.
        seconds: limit of one collective.
    """

    def __init__(self, kind: Literal["gloo", "nccl"], host: str, dtype: str, seconds: float, device: str) -> None:
        self.backend = f"trainer_{kind}"
        self.arguments = update_arguments(self.backend)
        self.environment: Mapping[str, str] = UPDATE_ENVIRONMENT
        self._kind = kind
        self._host = host
        self._dtype = DTYPES.get(dtype)
        self._seconds = seconds
        self._device = torch.device(device if kind == "nccl" else "cpu")

    def stage(self, weights: PublishedWeights) -> StagedWeights:
        """See ``WeightTransfer``."""
        tensors = converted(weights, self._dtype)
        size = sum(tensor.nbytes for tensor in tensors.values())
        updates = (tensor_layout(tensors),)
        return StagedWeights(weights.version, weights.fingerprint, updates, size, weights.probe, tensors)

    async def connect(self, client: VllmClient) -> "GroupConnection":
        """See ``WeightTransfer``."""
        size = 1 + await client.worker_count()
        limit = timedelta(seconds=self._seconds)
        # Port 0: the system chooses. It does not wait for the workers, which learn the port from the call below.
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            self._host, 0, None, True, limit, wait_for_workers=False
        )
        info = {"kind": self._kind, "host": self._host, "port": store.port, "size": size, "seconds": self._seconds}
        # Both at once: a group is complete, and the call returns, when every rank has joined.
        joined = call_in_daemon(lambda: join_group(self._kind, store, size, limit))
        group, _ = await asyncio.gather(joined, client.init_transfer(info))
        return GroupConnection(client, group, self._device)

    async def check(self, client: VllmClient) -> None:
        """See ``WeightTransfer``."""
        await check_updates(client, self)

    def keep_only(self, kept: Sequence[StagedWeights]) -> None:
        """See ``WeightTransfer``; the replicas drop the earlier weights with their reference to them."""

    def close(self) -> None:
        """See ``WeightTransfer``."""


class GroupConnection:
    """A server whose workers have joined a group."""

    def __init__(self, client: VllmClient, group: Any, device: torch.device) -> None:
        self._client = client
        self._group = group
        self._device = device

    async def send(self, staged: StagedWeights) -> None:
        """See ``Connection``."""
        await asyncio.gather(
            self._client.update(staged.updates[0]),
            call_in_daemon(lambda: self._broadcast(staged)),
        )

    def _broadcast(self, staged: StagedWeights) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        # In the order of the names, one after the other: a worker frees each layer's tensors once it is complete.
        for tensor in staged.tensors.values():
            self._group.broadcast([tensor.to(self._device)], options).wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def join_group(kind: str, store: Any, size: int, limit: timedelta) -> Any:
    """Join a group as rank 0."""
    if kind == "gloo":
        return dist.ProcessGroupGloo(store, 0, size, limit)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, 0, size, options)


async def call_in_daemon(action: Callable[[], Any]) -> Any:
    """Run a collective in a thread.

    Raises:
        Unavailable: it failed: a worker ended, or did not take part in time.
    """
    try:
        return await run_in_daemon(action)
    except RuntimeError as error:
        raise Unavailable(f"the transfer of weights failed: {error}", None) from error


def run_in_daemon(action: Callable[[], Any]) -> "asyncio.Future[Any]":
    """Run a blocking call in a thread that a hanging peer cannot make the process wait for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        if not result.done():  # its caller may have given up
            result.set_result(value) if error is None else result.set_exception(error)

    def run() -> None:
        try:
            value, error = action(), None
        except Exception as raised:  # noqa: BLE001 - whatever a collective raises belongs to its caller
            value, error = None, raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="weight transfer", daemon=True).start()
    return result
