"""Runs the learner, the critic and the reference policy in one dedicated thread, beside the event loop.

The event loop only queues jobs and awaits their results; all models are loaded, trained and saved in that thread. Jobs
run in the order in which they were queued, so a publication after an update sees the updated weights without a lock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import torch

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.errors import ServiceError
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, JobThread
from searchrl.storage.atomic_file import write_atomically
from services.trainer.learner.critic import Critic
from services.trainer.learner.learner import Learner
from services.trainer.learner.policy_update import (
    CriticReport,
    UpdateReport,
    explained_variance,
    rows_with_gae,
    update_critic,
    update_policy,
)
from services.trainer.learner.reports import LossReport, PublishedWeights
from services.trainer.learner.scoring import ReferencePolicy
from services.trainer.learner.train_batch import TrainBatch, TrainRow
from services.trainer.rollouts.group import Group
from services.trainer.rollouts.train_rows import Rewards, group_rows, reward_rows
from services.trainer.run_config import RunConfig

if TYPE_CHECKING:
    from services.trainer.learner.ray_learner import RayLearner

Result = TypeVar("Result")
OWNER = "learner"
PROBE_ROWS = 4
"""Rows whose log-probabilities are compared with the engine's before each update: wrong weights show on any row, and
each row costs a forward pass."""
CLOSE_SECONDS = 5.0  # only an update that hangs takes that long: otherwise the thread has nothing left to do


@dataclass(frozen=True, slots=True)
class StepUpdate:
    """The result of one step's update.

    Attributes:
        logprob_mismatch: before the update, engine against learner, mean absolute nats per token; None without rows.
        tokens: tokens of the batch, prompts and observations included.
    """

    report: UpdateReport
    logprob_mismatch: float | None
    tokens: int


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
        return await self.run(lambda models: models.learner.publish(version))

    async def restore(self, folder: Path) -> None:
        """Continue from what ``LearnerModels.save`` wrote."""
        await self.run(lambda models: models.restore(folder))

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
        self._jobs.close(finish=False, timeout=CLOSE_SECONDS)
        if self._opened is not None and not isinstance(self._opened.learner, Learner):
            self._opened.learner.close()


@dataclass(frozen=True, slots=True)
class LearnerModels:
    """The learner, and the critic and reference policy if the algorithm has them; used in one thread only."""

    config: RunConfig
    profile: SearcherProfile
    learner: "Learner | RayLearner"
    critic: Critic | None = None
    reference: ReferencePolicy | None = None

    @classmethod
    def load(cls, config: RunConfig, profile: SearcherProfile) -> Self:
        """Load the models.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used.
        """
        if config.learner.threads is not None:
            torch.set_num_threads(config.learner.threads)
        learner = _open_learner(config)
        has_reference = config.update.loss.kl_coefficient or config.update.gae.kl_coefficient
        return cls(
            config,
            profile,
            learner,
            Critic.from_folder(config.model, config.learner) if config.algorithm.kind == "ppo" else None,
            ReferencePolicy.from_folder(config.model, config.learner) if has_reference else None,
        )

    def save(self, folder: Path) -> None:
        """Write everything that a bit-exact resume needs."""
        self.learner.save(folder / "learner")
        if self.critic is not None:
            self.critic.save(folder / "critic")

    def restore(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        if self.critic is not None:
            self.critic.load(folder / "critic")
        self.learner.load(folder / "learner")

    def export(self, folder: Path) -> None:
        """Write a model folder with the profile."""
        self.learner.export(folder)
        write_atomically(folder / PROFILE_FILE, self.profile.to_json())

    def update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        """Turn groups into a batch and train on it."""
        rows, rewards = self._rows(groups)
        difference = self._logprob_mismatch(rows)
        if not rows:
            return StepUpdate(UpdateReport(LossReport(), ()), None, 0)
        if self.reference is not None:
            rows = self.reference.annotate(rows)
        if self.critic is None:
            report = update_policy(self.learner, TrainBatch.of(rows, step), self.config.update)
        else:
            report = self._update_with_critic(self.critic, rows, rewards, step)
        return StepUpdate(report, difference, sum(len(row) for row in rows))

    def _rows(self, groups: Sequence[Group]) -> tuple[list[TrainRow], Rewards]:
        algorithm, temperature = self.config.algorithm, self.profile.temperature
        if algorithm.kind == "ppo":
            return reward_rows(groups, temperature)
        kind, scale, drop = algorithm.advantage, algorithm.scale, algorithm.drop_zero_variance
        return group_rows(groups, kind, scale, temperature, drop), {}

    def _logprob_mismatch(self, rows: Sequence[TrainRow]) -> float | None:
        """Mean absolute difference of engine and learner on a few rows, in nats per token; None without rows."""
        sample = rows[:: max(1, len(rows) // PROBE_ROWS)][:PROBE_ROWS]
        found = self.learner.logprobs(sample)
        deltas = [np.abs(array - row.behavior_logprobs)[row.mask] for row, array in zip(sample, found, strict=True)]
        return float(np.concatenate(deltas).mean()) if deltas else None

    def _update_with_critic(
        self, critic: Critic, rows: Sequence[TrainRow], rewards: Rewards, step: int
    ) -> UpdateReport:
        batch = TrainBatch.of(rows_with_gae(rows, rewards, critic.values(rows), self.config.update.gae), step)
        values = update_critic(critic, batch, self.config.update)
        policy = update_policy(self.learner, batch, self.config.update)
        return replace(policy, critic=CriticReport(values.loss, explained_variance(batch.rows), values.optim))


def _open_learner(config: RunConfig) -> "Learner | RayLearner":
    settings = config.learner
    if not settings.ranks:
        return Learner.from_folder(config.model, settings, config.seed)
    from services.trainer.learner.ray_learner import RayLearner  # Ray takes seconds to import

    gpus = 1 if settings.device.startswith("cuda") else 0
    return RayLearner.start(config.model, settings, config.seed, ranks=settings.ranks, gpus_per_rank=gpus)
