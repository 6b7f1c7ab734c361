"""Runs the learner, the critic and the reference policy in one dedicated thread, beside the event loop."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
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
from services.trainer.learner.reference_policy import ReferencePolicy
from services.trainer.learner.reports import LossReport, PublishedWeights
from services.trainer.learner.train_batch import TrainBatch, TrainRow
from services.trainer.rollouts.group import Group
from services.trainer.rollouts.train_rows import Rewards, group_rows, reward_rows
from services.trainer.run_config import RunConfig

if TYPE_CHECKING:
    from services.trainer.learner.ray_learner import RayLearner

Result = TypeVar("Result")
PROBE_ROWS = 4


@dataclass(frozen=True, slots=True)
class StepUpdate:
    """What an update did.

    Attributes:
        logprob_difference: before the update, engine against learner, mean absolute nats per token; None without rows.
        tokens: tokens of the batch, prompts and observations included.
    """

    report: UpdateReport
    logprob_difference: float | None
    tokens: int


class LearnerThread:
    """Owns the learner, and the critic and the reference policy where the algorithm has them, in one thread.

    Always the same thread: torch keeps its number of threads per thread, and equal calls must give equal bits.
    """

    def __init__(self, config: RunConfig, profile: SearcherProfile) -> None:
        self._config = config
        self._profile = profile
        self._temperature = profile.temperature
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")
        self._learner: Learner | RayLearner | None = None
        self._critic: Critic | None = None
        self._reference: ReferencePolicy | None = None

    async def open(self) -> None:
        """Load the models.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used.
        """
        await self._call(self._load_models)

    async def update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        """Turn groups into a batch and train on it."""
        return await self._call(lambda: self._update(groups, step))

    async def publish(self, version: int) -> PublishedWeights:
        """Copy the weights of the policy as ``version``."""
        return await self._call(lambda: self.learner.publish(version))

    def save_now(self, folder: Path) -> None:
        """Write everything that a bit-exact resume needs; call it through ``run``."""
        self.learner.save(folder / "learner")
        if self._critic is not None:
            self._critic.save(folder / "critic")

    async def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote."""
        await self._call(lambda: self._load(folder))

    async def export(self, folder: Path) -> None:
        """Write a model folder, with the profile that the searcher was trained with."""
        await self._call(lambda: self._export(folder))

    async def run(self, action: Callable[[], Result]) -> Result:
        """Run something else in this thread, after what was asked before."""
        return await self._call(action)

    def close(self) -> None:
        """End the thread and the learner's other processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._learner is not None and not isinstance(self._learner, Learner):
            self._learner.close()

    @property
    def learner(self) -> "Learner | RayLearner":
        if self._learner is None:
            raise RuntimeError("open the learner first")
        return self._learner

    async def _call(self, action: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, action)

    def _load_models(self) -> None:
        config = self._config
        if config.learner.threads is not None:
            torch.set_num_threads(config.learner.threads)
        self._learner = _open_learner(config)
        if config.algorithm.kind == "ppo":
            self._critic = Critic.from_folder(config.model, config.learner)
        if config.update.loss.kl_coefficient or config.update.gae.kl_coefficient:
            self._reference = ReferencePolicy.from_folder(config.model, config.learner)

    def _update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        rows, rewards = self._rows(groups)
        difference = self._logprob_difference(rows)
        if not rows:
            return StepUpdate(UpdateReport(LossReport(), ()), None, 0)
        if self._reference is not None:
            rows = self._reference.annotate(rows)
        if self._critic is None:
            report = update_policy(self.learner, TrainBatch.of(rows, step), self._config.update)
        else:
            report = self._update_with_critic(self._critic, rows, rewards, step)
        return StepUpdate(report, difference, sum(len(row) for row in rows))

    def _rows(self, groups: Sequence[Group]) -> tuple[list[TrainRow], Rewards]:
        algorithm = self._config.algorithm
        if algorithm.kind == "ppo":
            return reward_rows(groups, self._temperature)
        kind, scale, drop = algorithm.advantage, algorithm.scale, algorithm.drop_zero_variance
        return group_rows(groups, kind, scale, self._temperature, drop), {}

    def _logprob_difference(self, rows: Sequence[TrainRow]) -> float | None:
        """How far engine and learner are apart on a few rows, in nats per token; None without rows."""
        sample = rows[:: max(1, len(rows) // PROBE_ROWS)][:PROBE_ROWS]
        found = self.learner.logprobs(sample)
        deltas = [np.abs(array - row.behaviour_logprobs)[row.mask] for row, array in zip(sample, found, strict=True)]
        return float(np.concatenate(deltas).mean()) if deltas else None

    def _update_with_critic(
        self, critic: Critic, rows: Sequence[TrainRow], rewards: Rewards, step: int
    ) -> UpdateReport:
        batch = TrainBatch.of(rows_with_gae(rows, rewards, critic.values(rows), self._config.update.gae), step)
        values = update_critic(critic, batch, self._config.update)
        policy = update_policy(self.learner, batch, self._config.update)
        return replace(policy, critic=CriticReport(values.loss, explained_variance(batch.rows), values.optim))

    def _export(self, folder: Path) -> None:
        self.learner.export(folder)
        part = folder / f".{PROFILE_FILE}.part"
        part.write_text(self._profile.to_json(), encoding="utf-8")
        part.replace(folder / PROFILE_FILE)

    def _load(self, folder: Path) -> None:
        if self._critic is not None:
            self._critic.load(folder / "critic")
        self.learner.load(folder / "learner")


def _open_learner(config: RunConfig) -> "Learner | RayLearner":
    settings = config.learner
    if not settings.ranks:
        return Learner.from_folder(config.model, settings, config.seed)
    from services.trainer.learner.ray_learner import RayLearner  # Ray takes seconds to import

    gpus = 1 if settings.device.startswith("cuda") else 0
    return RayLearner.start(config.model, settings, config.seed, ranks=settings.ranks, gpus_per_rank=gpus)
