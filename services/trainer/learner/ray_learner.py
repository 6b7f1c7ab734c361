"""Trains one policy in several Ray actors: data-parallel replicas behind the interface of ``Learner``.

The trainer's process holds ``RayLearner``, which sends every primitive to all actors and waits for all of them. Once
started, the ranks meet only in the collective of ``optim_step``. Every rank must call it: one that does not makes the
others wait until the collective times out (``STEP_SECONDS``).
"""

import logging
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import ray
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, ObjectLostError, RayTaskError
from torch import nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from searchrl.errors import ConfigurationError, ServiceError, Unavailable
from services.trainer.learner.batching import MicroRows, pack_for_ranks, shard_rows
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner, has_gradient
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.reports import LossReport, OptimReport, PublishedWeights
from services.trainer.learner.train_batch import FloatArray, TrainBatch, TrainRow
from services.trainer.learner.training_state import random_state, read_state, restore_random_state, write_state
from services.trainer.losses.policy_losses import LossSettings

START_SECONDS = 300.0
"""For placing the actors and loading the model, which may take minutes for a large one."""
STEP_SECONDS = 1800.0
"""For one primitive, and for each of its collectives: in one, a rank waits for others whose shares take longer.

Longer counts as a hang. A lower value notices one sooner, and limits the size of a batch.
"""


class LearnerRank:
    """One replica in its own process; runs the same primitives and sums gradients with the others."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank = rank
        self._ranks = ranks
        self._store: TCPStore | None = None
        self._learner: Learner | None = None

    def open_store(self) -> tuple[str, int]:
        """Open the store through which all ranks meet, on rank 0, at a port that the system picks."""
        # In a pod, the host name resolves to the pod's own address. ``wait_for_workers=False``, because the others
        # learn the address only after this call has returned.
        host = socket.gethostbyname(socket.gethostname()) if self._ranks > 1 else "127.0.0.1"
        self._store = TCPStore(host, 0, self._ranks, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def start(self, address: tuple[str, int], folder: Path, settings: LearnerSettings, seed: int) -> None:
        """Join the other ranks and load the model."""
        started = timedelta(seconds=START_SECONDS)
        store = self._store or TCPStore(*address, self._ranks, is_master=False, timeout=started)
        backend = "nccl" if settings.device.startswith("cuda") else "gloo"
        step = timedelta(seconds=STEP_SECONDS)
        dist.init_process_group(backend, store=store, rank=self._rank, world_size=self._ranks, timeout=step)
        # a seed per rank, so that the ranks do not draw the same random numbers
        self._learner = Learner.from_folder(folder, settings, seed + self._rank, sum_gradients)

    @property
    def _ready(self) -> Learner:
        if self._learner is None:
            raise Unavailable(f"learner rank {self._rank} was not started")
        return self._learner

    def forward_backward(self, batch: TrainBatch, loss: LossSettings, micro_batches: Sequence[MicroRows]) -> LossReport:
        """Accumulate this rank's share."""
        return self._ready.forward_backward(batch, loss, micro_batches)

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        """Sum gradients over all ranks and step; every rank must call it, or the others wait."""
        return self._ready.optim_step(settings)

    def logprobs(self, rows: Sequence[TrainRow]) -> list[FloatArray]:
        """Score this rank's share."""
        return self._ready.logprobs(rows)

    def publish(self, version: int, with_tensors: bool) -> PublishedWeights:
        """This replica's fingerprint, and its tensors only if they are wanted."""
        weights = self._ready.publish(version)
        return weights if with_tensors else PublishedWeights(version, weights.fingerprint, {})

    def save(self, folder: Path) -> None:
        """Rank 0 writes the state; every rank writes its random generators."""
        if self._rank == 0:
            self._ready.save(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_state(folder / rank_file(self._rank), random_state())

    def load(self, folder: Path) -> None:
        """Every rank reads the state; random generators come from its own file if that rank existed."""
        self._ready.load(folder)
        if (folder / rank_file(self._rank)).is_file():
            restore_random_state(read_state(folder / rank_file(self._rank)))

    def export(self, folder: Path, dtype: str) -> None:
        """Write a Hugging Face folder."""
        self._ready.export(folder, dtype)

    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self._ready.steps


def rank_file(rank: int) -> str:
    """Name of the file with a rank's random generators."""
    return f"random_rank_{rank}.pt"


class RayLearner:
    """Replicas of the policy in Ray actors; has the methods of ``Learner`` and the same results up to rounding.

    Rows are distributed by length; denominators are those of the complete batch; gradients are summed once per
    optimizer step, so ranks without rows cannot block the others.
    """

    def __init__(self, actors: Sequence[Any], settings: LearnerSettings) -> None:
        self._actors = actors
        self.settings = settings

    @classmethod
    def start(cls, folder: Path, settings: LearnerSettings, seed: int, *, ranks: int, gpus_per_rank: float = 0) -> Self:
        """Start the actors and load the model in each.

        They run in the current Ray session, else in the cluster that ``RAY_ADDRESS`` names, else on this machine.

        Raises:
            Unavailable: there is no such cluster, or it could not place or start them in time.
        """
        join_cluster()
        threads = str(settings.threads or 1)
        # Ray does not restart these actors, by default: a new one would lack weights and moments. The run ends, and a
        # resume starts all of them from a checkpoint.
        # Waiting OpenMP threads must not spin: the ranks of one machine share its cores.
        environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        rank_class: Any = ray.remote(LearnerRank)
        remote_class = rank_class.options(
            num_cpus=settings.threads or 1,
            num_gpus=gpus_per_rank,
            scheduling_strategy="SPREAD",  # one rank per machine, as far as there are enough
            runtime_env={"env_vars": environment},  # read when torch is loaded, so the actor itself could not set it
        )
        actors = [remote_class.remote(rank, ranks) for rank in range(ranks)]
        learner = cls(actors, settings)
        # ``resolve``: an actor's working directory may be another one
        address = collect([actors[0].open_store.remote()], START_SECONDS)[0]
        collect([actor.start.remote(address, folder.resolve(), settings, seed) for actor in actors], START_SECONDS)
        return learner

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return collect([self._actors[0].steps.remote()])[0]

    def forward_backward(self, batch: TrainBatch, loss: LossSettings) -> LossReport:
        """See ``Learner.forward_backward``."""
        rows = [row for row in batch.rows if row.trainable_tokens and row.weight and has_gradient(row, loss)]
        grid = pack_for_ranks(rows, len(self._actors), self.settings.token_budget)
        empty = batch.with_rows(())  # each rank's rows travel in its column; the batch brings the denominators
        calls = [
            actor.forward_backward.remote(empty, loss, column) for actor, column in zip(self._actors, grid, strict=True)
        ]
        skipped = LossReport(0.0, {"skipped_rows": float(len(batch.rows) - len(rows))})
        return LossReport.merge([skipped, *collect(calls)])

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        """See ``Learner.optim_step``."""
        # Any rank's report: the reduced gradients are the same on all of them, and so is everything computed from them.
        return collect([actor.optim_step.remote(settings) for actor in self._actors])[0]

    def logprobs(self, rows: Sequence[TrainRow]) -> list[FloatArray]:
        """See ``Learner.logprobs``."""
        shares = shard_rows(rows, len(self._actors))
        calls = [actor.logprobs.remote(share) for actor, share in zip(self._actors, shares, strict=True)]
        found: dict[object, FloatArray] = {}
        for share, arrays in zip(shares, collect(calls), strict=True):
            found.update((row.key, array) for row, array in zip(share, arrays, strict=True))
        return [found[row.key] for row in rows]

    def publish(self, version: int) -> PublishedWeights:
        """Rank 0's weights, after comparing the fingerprints of all ranks.

        Raises:
            ServiceError: the replicas differ.
        """
        # Every rank steps a copy of its own, so that the copies are equal has to be checked. Only rank 0's weights
        # travel; the others send 64 characters.
        calls = [actor.publish.remote(version, rank == 0) for rank, actor in enumerate(self._actors)]
        published: list[PublishedWeights] = collect(calls)
        if len({weights.fingerprint for weights in published}) != 1:
            raise ServiceError("the learner's ranks hold different weights; resume from the last checkpoint")
        return published[0]

    def save(self, folder: Path) -> None:
        """See ``Learner.save``; all ranks must see ``folder``."""
        collect([actor.save.remote(folder.resolve()) for actor in self._actors])

    def load(self, folder: Path) -> None:
        """See ``Learner.load``; a state saved by a ``Learner`` or by another number of ranks loads too."""
        collect([actor.load.remote(folder.resolve()) for actor in self._actors])

    def export(self, folder: Path, dtype: str = "float32") -> None:
        """See ``Learner.export``."""
        collect([self._actors[0].export.remote(folder.resolve(), dtype)])

    def close(self) -> None:
        """End the actors and leave the Ray session."""
        for actor in self._actors:
            ray.kill(actor)
        ray.shutdown()


def join_cluster() -> None:
    """Join the cluster of ``RAY_ADDRESS``, or start one on this machine; does nothing within a session.

    Ray takes over SIGTERM: its handler ends the process three seconds later, even while a checkpoint is saved. So call
    this before the process sets its own handlers.

    Raises:
        Unavailable: there is no such cluster.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise Unavailable(f"cannot reach the Ray cluster at {address}", retry_after_seconds=None) from error


def collect(calls: Sequence[Any], seconds: float = STEP_SECONDS) -> list[Any]:
    """Wait for all ranks; an expected error of a rank is raised unwrapped.

    Raises:
        Unavailable: a rank died, could not be reached, or did not answer in time.
    """
    try:
        return ray.get(list(calls), timeout=seconds)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, (ServiceError, ConfigurationError)) else error from None
    except GetTimeoutError as error:
        raise Unavailable(f"a learner rank did not answer within {seconds:.0f} s") from error
    except ActorDiedError as error:
        raise Unavailable(f"a learner rank died: {error}", retry_after_seconds=None) from error
    except (ActorUnavailableError, ObjectLostError) as error:
        # Ray may reach the rank again, but nobody knows whether it executed the call: its gradients may count twice, or
        # be missing. So there is no retry; the run ends, as with a rank that died.
        raise Unavailable(f"the connection to a learner rank failed: {error}", retry_after_seconds=None) from error


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over ranks.

    Losses are normalized by global counts, so the sum over ranks is the gradient of the complete batch. Every rank
    takes part in every step, even if its rows have no trainable token: its gradients are 0 then. One flat tensor makes
    it a single collective call, for the memory of one more copy of the gradients.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # ``named_parameters`` has the same order on every rank, so equal places of the flat tensors belong together.
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        end = start + gradient.numel()
        gradient.copy_(flat[start:end].view_as(gradient))
        start = end
