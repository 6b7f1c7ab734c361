"""Runs a learner's ranks as Ray actors: every job runs in all of them, and the first error of one ends it.

Each actor builds its part of the models and then runs the jobs that it is sent. The jobs meet in collectives, so all
ranks must run each of them: one that does not makes the others wait until the collective times out (``STEP_SECONDS``).
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Self

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayError, RayTaskError
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from searchrl.errors import ConfigurationError, ServiceError, Unavailable
from searchrl.storage.durable_files import is_disk_full
from services.trainer.cluster.placement import RunPlacement
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.ranks import STEP_SECONDS, Ranks, join_ranks

START_SECONDS = 300.0
"""For placing the actors and loading the models, which may take minutes for large ones."""
CAUSE_SECONDS = 10.0
"""How long to wait for the errors of other ranks after the first.

A rank that dies breaks the collectives of the others, whose errors may arrive before Ray has noticed its death.
"""


BESIDE = "beside"
"""Jobs that run beside the others of a rank, one at a time, such as the write of a checkpoint."""


class LearnerRank:
    """One rank in its own process: what it has built, and the jobs that run on it."""

    def __init__(self, rank: int, size: int) -> None:
        self._ranks = Ranks(rank, size)
        self._store: TCPStore | None = None
        self._built: Any = None

    def open_store(self) -> tuple[str, int]:
        """Open the store through which all ranks meet, on rank 0, at a port that the system picks."""
        # Ray knows the address at which the other machines reach this one; the host's name may be that of a loopback.
        # ``wait_for_workers=False``, because the others learn the address only after this call has returned.
        host = ray.util.get_node_ip_address() if self._ranks.size > 1 else "127.0.0.1"
        self._store = TCPStore(host, 0, self._ranks.size, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def start(self, address: tuple[str, int], device: str, build: Callable[[Ranks], object]) -> None:
        """Join the other ranks and build this rank's part."""
        started = timedelta(seconds=START_SECONDS)
        store = self._store or TCPStore(*address, self._ranks.size, is_master=False, timeout=started)
        join_ranks(self._ranks, store, device)
        self._built = build(self._ranks)

    def run(self, job: Callable[..., object], *arguments: object) -> object:
        """Run a job on what this rank has built."""
        return self._run(job, *arguments)

    @ray.method(concurrency_group=BESIDE)
    def run_beside(self, job: Callable[..., object], *arguments: object) -> object:
        """Run a job beside those of ``run``, in a thread of its own."""
        return self._run(job, *arguments)

    def _run(self, job: Callable[..., object], *arguments: object) -> object:
        if self._built is None:
            raise Unavailable(f"learner rank {self._ranks.rank} was not started")
        return job(self._built, *arguments)


class RayRanks:
    """The actors of all ranks."""

    def __init__(self, actors: Sequence[Any], placement: RunPlacement) -> None:
        self._actors = actors
        self._placement = placement

    @classmethod
    def start(
        cls, settings: LearnerSettings, build: Callable[[Ranks], object], placement: RunPlacement | None = None
    ) -> Self:
        """Start the actors and build each one's part.

        They run in the current Ray session, else in the cluster that ``RAY_ADDRESS`` names, else on this machine.

        Args:
            placement: their places; None: that of ranks alone.

        Raises:
            ConfigurationError: this machine is too small.
            Unavailable: there is no such cluster, or it could not place or start them in time.
        """
        placement = placement or RunPlacement(settings.places())
        placement.reserve()
        # Ray does not restart these actors, by default: a new one would lack weights and moments. The run ends, and a
        # resume starts all of them from a checkpoint.
        # Waiting OpenMP threads must not spin: the ranks of one machine share its cores.
        environment = {"OMP_NUM_THREADS": str(settings.threads or 1), "OMP_WAIT_POLICY": "PASSIVE"}
        remote: Any = ray.remote  # its types do not know concurrency groups
        rank_class = remote(concurrency_groups={BESIDE: 1})(LearnerRank)
        runtime = {"env_vars": environment}  # read when torch is loaded, so the actor itself could not set it
        actors = [
            rank_class.options(**placement.rank(rank), runtime_env=runtime).remote(rank, settings.ranks)
            for rank in range(settings.ranks)
        ]
        address = collect([actors[0].open_store.remote()], START_SECONDS)[0]
        collect([actor.start.remote(address, settings.device, build) for actor in actors], START_SECONDS)
        return cls(actors, placement)

    def run(self, job: Callable[..., Any], *arguments: object) -> list[Any]:
        """Run ``job(built, *arguments)`` in every rank, and return the results in the order of the ranks.

        Raises:
            Unavailable: a rank died, could not be reached, or did not answer in time.
        """
        # stored once, and mapped into the memory of every rank of a machine
        shared = [ray.put(argument) for argument in arguments]
        return collect([actor.run.remote(job, *shared) for actor in self._actors])

    def run_beside(self, job: Callable[..., Any], *arguments: object) -> list[Any]:
        """Run a job in every rank beside the one that ``run`` runs; from any thread, one at a time.

        Raises:
            Unavailable: as ``run``.
        """
        return collect([actor.run_beside.remote(job, *arguments) for actor in self._actors])

    def close(self) -> None:
        """End the actors, and leave the Ray session unless the engine's servers need it."""
        for actor in self._actors:
            ray.kill(actor)
        self._placement.release()


def collect(calls: Sequence[Any], seconds: float = STEP_SECONDS) -> list[Any]:
    """Wait for all ranks; an expected error of a rank is raised unwrapped.

    Raises:
        Unavailable: a rank died, could not be reached, or did not answer in time.
    """
    results: dict[Any, Any] = {}
    pending = list(calls)
    deadline = time.monotonic() + seconds
    while pending:
        # one by one as they end: the others may wait in a collective for a rank that has failed
        done, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise Unavailable(f"a learner rank did not answer within {seconds:.0f} s")
        try:
            results[done[0]] = ray.get(done[0])
        except RayError as error:
            raise _find_cause([error, *_errors_of(pending)])[0] from error
    return [results[call] for call in calls]


def _errors_of(pending: Sequence[Any]) -> list[Exception]:
    """Errors of the other ranks that arrive shortly after the first."""
    errors: list[Exception] = []
    done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=CAUSE_SECONDS) if pending else ([], [])
    for call in done:
        try:
            ray.get(call)
        except RayError as error:
            errors.append(error)
    return errors


def _find_cause(errors: Sequence[Exception]) -> list[Exception]:
    """Order errors of ranks, as what to raise: one that explains itself, then a death, then what follows from it."""
    explained: list[Exception] = []
    lost: list[Exception] = []
    others: list[Exception] = []
    for error in errors:
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, (ServiceError, ConfigurationError)) or (
            isinstance(cause, Exception) and is_disk_full(cause)
        ):
            explained.append(cause)
        elif isinstance(error, ActorDiedError):
            lost.append(Unavailable(f"a learner rank died: {error}", retry_after_seconds=None))
        elif isinstance(error, (ActorUnavailableError, ObjectLostError)):
            # Ray may reach the rank again, but nobody knows whether it executed the call: its gradients may count
            # twice, or be missing. So there is no retry; the run ends, as with a rank that died.
            message = f"the connection to a learner rank failed: {error}"
            lost.append(Unavailable(message, retry_after_seconds=None))
        else:
            others.append(error)
    return [*explained, *lost, *others]
