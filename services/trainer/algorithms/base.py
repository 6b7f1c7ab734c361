"""Defines what an algorithm is: how groups become rows, which models it needs, and how an update goes.

``update_step`` drives one update of the learners with any algorithm. A new algorithm is one file beside this one, with
its settings, and one line in ``ALGORITHMS``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import Field, PositiveInt

from searchrl.agent.types import Limits
from searchrl.platform.settings import Section
from services.trainer.learner.learner import Learner
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.learner.train_batch import (
    ScoredTrajectory,
    TrainBatch,
    TrainRow,
    find_turns,
    rows_from_trajectories,
)
from services.trainer.losses.advantages import GroupAdvantage, group_advantages, process_advantages
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.rollouts.group import Group, Rollout

PROBE_ROWS = 4
"""Rows whose log-probabilities are compared with the engine's before each update: wrong weights show on any row, and
each row costs a forward pass."""


class UpdateSettings(Section):
    """Passes and optimizer steps of one update; every algorithm has them."""

    optim: OptimSettings = Field(default=OptimSettings(), description="Optimizer of the policy.")
    # More steps use a batch better and move the policy further from the one that sampled it.
    mini_batches: PositiveInt = Field(default=2, description="Optimizer steps per pass.")
    epochs: PositiveInt = Field(default=1, description="Passes over the batch.")


class AlgorithmBase(Section):
    """What the settings of all algorithms have in common."""

    needs_critic: ClassVar[bool] = False
    credits_turns: ClassVar[bool] = True
    """Whether the tokens of a rollout may have different advantages, as process rewards give them."""
    overlong_penalty: ClassVar[float] = 0.0
    """Default of ``reward.overlong.penalty``."""

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term."""
        return False

    @property
    def compares_rollouts(self) -> bool:
        """Whether an advantage needs several rollouts of one question."""
        return True

    @property
    def normalizes_batch(self) -> bool:
        """Whether an advantage needs several rollouts in a step."""
        return False

    @property
    def sample_batches(self) -> int:
        """Batches of groups that one step may roll out, to replace groups that teach nothing."""
        return 1

    @property
    def optimizers(self) -> Mapping[str, OptimSettings]:
        """Optimizers besides the policy's, by the name of their setting."""
        return {}


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of one step, and the rewards by (group, rollout) if the algorithm assigns credit by itself.

    Attributes:
        turn_rewards: process rewards of the rollouts that have any.
    """

    rows: list[TrainRow]
    rewards: Mapping[tuple[int, int], float] = field(default_factory=dict)
    turn_rewards: Mapping[tuple[int, int], tuple[float | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CriticReport:
    """Result of one update of a critic.

    Attributes:
        loss: mean of its loss over mini-batches, and the sums over its tokens.
        explained_variance: 1 - Var(return - value) / Var(return) before the update: 1 is perfect, 0 no better than a
            constant.
    """

    loss: LossReport
    explained_variance: float
    optim: tuple[OptimReport, ...]


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Mean loss and sums over all mini-batches, and every optimizer step."""

    loss: LossReport
    optim: tuple[OptimReport, ...]
    critic: CriticReport | None = None


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


Settings = TypeVar("Settings", bound=AlgorithmBase)


class Algorithm(ABC, Generic[Settings]):
    """One way to turn rewards into an update of the learners.

    Args:
        max_sampled_tokens: most tokens that a rollout may sample.
    """

    def __init__(
        self, settings: Settings, update: UpdateSettings, max_sampled_tokens: int = Limits().max_sampled_tokens
    ) -> None:
        self.settings = settings
        self.update_settings = update
        self.max_sampled_tokens = max_sampled_tokens

    @abstractmethod
    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        """Turn the finished groups of a step into rows."""

    @abstractmethod
    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        """Train the learners on the rows; they have reference log-probabilities if a reference policy is loaded."""


def update_step(algorithm: Algorithm[Any], learners: LearnerGroup, step_rows: StepRows, step: int) -> StepUpdate:
    """Measure the mismatch with the engine, and train on the rows. With several ranks, each of them runs this."""
    # Measured before the update: afterwards the learner is another policy than the one that the engine sampled from.
    mismatch = logprob_mismatch(learners.policy, step_rows.rows)
    if not step_rows.rows:
        return StepUpdate(UpdateReport(LossReport(), ()), None, 0)
    if learners.reference is not None:
        step_rows = replace(step_rows, rows=learners.reference.annotate(step_rows.rows))
    report = algorithm.update(learners, step_rows, step)
    return StepUpdate(report, mismatch, sum(len(row) for row in step_rows.rows))


def logprob_mismatch(learner: Learner, rows: Sequence[TrainRow]) -> float | None:
    """Mean absolute difference of engine and learner on a few rows, in nats per token; None without rows."""
    # Spread over the batch instead of its first rows, which are rollouts of one question: of 192 rows, every 48th.
    sample = rows[:: max(1, len(rows) // PROBE_ROWS)][:PROBE_ROWS]
    found = learner.logprobs(sample)
    deltas = [np.abs(array - row.behavior_logprobs)[row.mask] for row, array in zip(sample, found, strict=True)]
    return float(np.concatenate(deltas).mean()) if deltas else None


def group_rows(
    groups: Sequence[Group],
    kind: GroupAdvantage,
    scale: float,
    temperature: float,
    drop_idle: bool,
    credits_turns: bool = True,
) -> list[TrainRow]:
    """Return one row per usable rollout, with its advantage in its group, to which those of its turns are added.

    Rollouts that failed by infrastructure or are masked have no row and are in no statistic. A group whose advantages
    are all 0 has no learning signal: its rewards are equal or, with kind ``reward``, all 0. With ``drop_idle`` it is
    left out of the loss's denominator, too.
    """
    scored: list[ScoredTrajectory] = []
    for group in groups:
        advantages = group_advantages(group.rewards, kind, scale)
        turns = process_advantages(group.turn_rewards if credits_turns else [()] * len(group.rollouts), kind, scale)
        if drop_idle and not advantages.any() and not any(map(any, turns)):
            continue
        scored.extend(usable_members(group, list(map(_per_token, group.rollouts, advantages.tolist(), turns))))
    return rows_from_trajectories(scored, temperature)


def _per_token(rollout: Rollout, advantage: float, turns: Sequence[float]) -> float | list[float]:
    """Return the rollout's advantage, or one per sampled token if its turns have advantages of their own."""
    if not turns or rollout.trajectory is None:
        return advantage
    mask = np.asarray(rollout.trajectory.tokens.mask, dtype=np.bool_)
    runs = find_turns(mask, len(turns))
    if runs is None:  # turns that no observation separates: their tokens share what the rollout earned
        return advantage + turns[0]
    per_token = np.full(len(mask), advantage)
    for run, more in zip(runs, turns, strict=True):
        per_token[run] += more
    return per_token[mask].tolist()


def usable_members(group: Group, advantages: Sequence[float | Sequence[float]]) -> list[ScoredTrajectory]:
    """Return the rollouts of a group that can be trained, each with its advantage."""
    return [
        ScoredTrajectory(rollout.trajectory, group.prompt.group_id, rollout.rollout_index, advantage)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True)
        if rollout.trajectory is not None and group.is_usable(rollout)
    ]


def update_policy(learner: Learner, batch: TrainBatch, loss: LossSettings, update: UpdateSettings) -> UpdateReport:
    """Train on the batch in mini-batches, each of which is one optimizer step.

    All mini-batches of all epochs measure their ratio against one old policy: the sampler, or with old_policy
    ``proximal`` the weights at the start of this call.
    """
    if loss.old_policy == "proximal":
        # once, before the first step: computed later, the ratio would not show how far earlier mini-batches moved it
        arrays = learner.logprobs(batch.rows)
        batch = batch.with_rows([replace(r, proximal_logprobs=a) for r, a in zip(batch.rows, arrays, strict=True)])
    return train_in_mini_batches(
        batch, update, lambda rows: learner.forward_backward(rows, loss), lambda: learner.optim_step(update.optim)
    )


def train_in_mini_batches(
    batch: TrainBatch,
    update: UpdateSettings,
    forward_backward: Callable[[TrainBatch], LossReport],
    optim_step: Callable[[], OptimReport],
) -> UpdateReport:
    """Make one optimizer step per mini-batch; report the mean of their losses, and the totals of their sums.

    A mean, so that the loss does not grow with the number of mini-batches.
    """
    # The mini-batches are the same in every epoch. They follow from the rows' keys alone, so a resumed run makes the
    # same ones without a random generator.
    losses: list[LossReport] = []
    steps: list[OptimReport] = []
    for mini_batch in batch.split(update.mini_batches) * update.epochs:
        losses.append(forward_backward(mini_batch))
        steps.append(optim_step())
    merged = LossReport.merge(losses)
    return UpdateReport(LossReport(merged.loss / max(1, len(losses)), merged.sums), tuple(steps))
