"""Runs the learner, the critic and the reference policy in one dedicated thread, beside the event loop.

The event loop only queues jobs and awaits their results; all models are loaded, trained and saved in that thread. Jobs
run in the order in which they were queued, so a publication after an update sees the updated weights without a lock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.errors import ServiceError
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, JobThread
from searchrl.storage.durable_files import atomic_write
from services.trainer.algorithms import ALGORITHMS
from services.trainer.algorithms.base import Algorithm, StepUpdate, update_step
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.reports import PublishedWeights
from services.trainer.rollouts.group import Group
from services.trainer.run_config import RunConfig

Result = TypeVar("Result")
OWNER = "learner"
CLOSE_SECONDS = 5.0  # only an update that hangs takes that long: otherwise the thread has nothing left to do


class LearnerThread:
    """Runs the learner's jobs, always in the same thread: torch keeps its number of threads per thread, and equal calls
    must give equal bits.

    After a job that fails unexpectedly, native panics included, the process is not ready; the failure is logged and
    counted.
    """

    def __init__(
        self,
        config: RunConfig,
        profile: SearcherProfile,
        *,
        health: Health | None = None,
        count: Callable[[], object] | None = None,
    ) -> None:
        # The first failure already ends readiness: a training job has one learner, and its failed update ends the run.
        self._jobs = JobThread[LearnerModels](
            FailureWatch(OWNER, health=health, count=count, not_ready_after=1),
            lambda: LearnerModels.load(config, profile),
        )
        self._opened: LearnerModels | None = None

    async def open(self) -> None:
        """Load the models.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used.
        """
        self._opened = await self.run(lambda models: models)

    async def update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        """Turn groups into a batch and train on it."""
        return await self.run(lambda models: models.update(groups, step))

    async def publish(self, version: int) -> PublishedWeights:
        """Return a copy of the policy's weights as ``version``."""
        return await self.run(lambda models: models.learners.policy.publish(version))

    async def restore(self, folder: Path) -> None:
        """Continue from what ``save`` wrote."""
        await self.run(lambda models: models.learners.load(folder))

    async def export(self, folder: Path) -> None:
        """Write a model folder, with the profile that the searcher was trained with."""
        await self.run(lambda models: models.export(folder))

    async def run(self, job: Callable[["LearnerModels"], Result]) -> Result:
        """Run ``job`` in the thread, after the jobs that were queued before.

        Raises:
            Exception: what the job raised; a native panic becomes an internal error.
        """
        try:
            return await self._jobs.call(job)
        except ServiceError as error:
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None  # the run must end with the original error, not with "internal error"
            raise

    def close(self) -> None:
        """End the thread and the learner's other processes; an update that hangs is abandoned."""
        # First the thread, whose current job may still use the ranks. If that hangs, killing them is what ends it: a
        # rank in a collective would wait for its timeout.
        self._jobs.close(finish=False, timeout=CLOSE_SECONDS)
        if self._opened is not None:
            self._opened.learners.close()


@dataclass(frozen=True, slots=True)
class LearnerModels:
    """The learners of a run with the algorithm that updates them; used in one thread only."""

    algorithm: Algorithm[Any]
    learners: LearnerGroup
    profile: SearcherProfile

    @classmethod
    def load(cls, config: RunConfig, profile: SearcherProfile) -> Self:
        """Load the models that the algorithm needs.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used.
        """
        settings = config.algorithm
        algorithm, _ = ALGORITHMS[settings.kind]
        learners = LearnerGroup.from_folder(
            config.model,
            config.learner,
            config.seed,
            has_critic=settings.needs_critic,
            has_reference=settings.needs_reference,
        )
        return cls(algorithm(settings, config.update), learners, profile)

    def update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        """Turn groups into a batch and train on it."""
        return update_step(self.algorithm, self.learners, groups, self.profile.temperature, step)

    def export(self, folder: Path) -> None:
        """Write a model folder with the profile."""
        self.learners.policy.export(folder)
        atomic_write(folder / PROFILE_FILE, self.profile.to_json())
