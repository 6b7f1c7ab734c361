"""Supervised training on demonstrations: a loop over the learner's primitives, resumable at any step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from searchrl.domain.trajectory import NOT_SAMPLED
from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings, ScheduleSettings
from services.trainer.learner.train_batch import IntArray, RowKey, TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings

# Rows carry their own normalization as advantages (see ``_row``), so the sum per row is right; a mean over tokens would
# normalize twice.
SFT_LOSS = LossSettings(policy="cross_entropy", aggregation="seq_mean_token_sum")
MIXING_STREAM = 1
"""Second number of the shuffle's seed: keeps its random stream apart from others that use the same ``seed``."""


class SftSettings(Section):
    """Supervised training; the defaults are the small world's warm start."""

    epochs: PositiveFloat = Field(default=1.0, description="Passes over the demonstrations.")
    batch_rows: PositiveInt = Field(default=16, description="Demonstrations of one optimizer step.")
    # More batches per bucket save padding and make batches less random.
    bucket_batches: PositiveInt = Field(default=8, description="Batches that are sorted by length together.")
    # Documents repeat names, so predicting their tokens teaches the model to copy from its context.
    environment_weight: NonNegativeFloat = Field(default=1.0, description="Weight of tokens the policy did not write.")
    # In the small world, a step of Muon was worth about 1.6 steps of AdamW alone.
    optim: OptimSettings = Field(
        default=OptimSettings(kind="muon", learning_rate=4e-3, muon_learning_rate=0.025, betas=(0.9, 0.98)),
        description="The optimizer; its schedule is replaced by warm-up and linear decay.",
    )
    warmup_steps: NonNegativeInt = Field(default=30, description="Steps of linear warm-up.")
    final_fraction: float = Field(default=0.05, ge=0, le=1, description="Learning rate at the end, as a factor.")
    seed: int = Field(default=0, description="Order of the demonstrations.")


@dataclass(frozen=True, slots=True)
class TokenDemonstration:
    """Token ids of one complete episode, and which of them the policy should have written."""

    token_ids: Sequence[int]
    action_mask: Sequence[bool]


@dataclass(frozen=True, slots=True)
class SftReport:
    """One optimizer step; losses are in nats per token."""

    step: int
    total_steps: int
    action_nll: float
    environment_nll: float
    tokens: int
    grad_norm: float
    learning_rate: float


class SftRun:
    """Supervised training of one learner on a fixed list of demonstrations.

    The rows of a step depend on the settings and the step's number alone, and the step's number is the learner's count
    of optimizer steps: to resume, load the learner and call ``run`` again.
    """

    def __init__(self, learner: Learner, demonstrations: Sequence[TokenDemonstration], settings: SftSettings) -> None:
        if len(demonstrations) < settings.batch_rows:
            raise ConfigurationError(
                f"supervised training needs at least {settings.batch_rows} demonstrations, got {len(demonstrations)}"
            )
        self._learner = learner
        self._demonstrations = demonstrations
        self._settings = settings
        self._batches_per_epoch = len(demonstrations) // settings.batch_rows
        self.total_steps = max(1, int(settings.epochs * self._batches_per_epoch))
        schedule = ScheduleSettings(
            kind="linear",
            warmup_steps=settings.warmup_steps,
            total_steps=self.total_steps,
            final_fraction=settings.final_fraction,
        )
        self._optim = settings.optim.model_copy(update={"schedule": schedule})
        self._lengths = np.array([len(demonstration.token_ids) for demonstration in demonstrations])
        actions = sum(int(np.count_nonzero(demonstration.action_mask)) for demonstration in demonstrations)
        # Constants of the complete data set: a mean per batch of similar lengths would weigh short demonstrations more.
        self._mean_actions = actions / len(demonstrations)
        self._mean_others = float(self._lengths.mean()) - self._mean_actions
        self._mixed: tuple[int, list[IntArray]] | None = None

    def run(self, steps: int | None = None, on_step: Callable[[SftReport], None] | None = None) -> SftReport | None:
        """Train up to ``steps`` further steps, or to the end; return the last step's report.

        ``on_step`` may raise to stop between two steps.
        """
        report: SftReport | None = None
        end = self.total_steps if steps is None else min(self.total_steps, self._learner.steps + steps)
        while self._learner.steps < end:
            report = self._step(self._learner.steps)
            if on_step is not None:
                on_step(report)
        return report

    def _step(self, step: int) -> SftReport:
        rows = [self._row(index) for index in self.indices_of(step)]
        loss = self._learner.forward_backward(TrainBatch.of(rows, step), SFT_LOSS)
        optim = self._learner.optim_step(self._optim)
        metrics = loss.metrics
        return SftReport(
            step=step,
            total_steps=self.total_steps,
            action_nll=metrics["action_nll"],
            environment_nll=metrics.get("environment_nll", 0.0),
            tokens=sum(len(row) for row in rows),
            grad_norm=optim.grad_norm,
            learning_rate=optim.learning_rate,
        )

    def indices_of(self, step: int) -> IntArray:
        """Indices of the demonstrations that a step trains on."""
        epoch, batch = divmod(step, self._batches_per_epoch)
        return self._epoch(epoch)[batch]

    def _epoch(self, epoch: int) -> list[IntArray]:
        if self._mixed is None or self._mixed[0] != epoch:
            self._mixed = (epoch, list(self._mix(epoch)))
        return self._mixed[1]

    def _mix(self, epoch: int) -> Iterator[IntArray]:
        """Shuffle, sort by length within buckets, cut into batches, shuffle the batches."""
        size = self._settings.batch_rows
        # A stream per epoch, so that any step can be computed without the steps before it. The remainder that fills no
        # batch is another one in every epoch. Buckets bound what sorting costs in randomness: of 8 batches of 16 rows,
        # 128 random rows are sorted, and a batch has rows of similar length with little padding.
        rng = np.random.default_rng([self._settings.seed, MIXING_STREAM, epoch])
        order = rng.permutation(len(self._demonstrations))[: self._batches_per_epoch * size]
        batches: list[IntArray] = []
        for start in range(0, len(order), size * self._settings.bucket_batches):
            bucket = order[start : start + size * self._settings.bucket_batches]
            bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            batches.extend(bucket[first : first + size] for first in range(0, len(bucket), size))
        return (batches[index] for index in rng.permutation(len(batches)))

    def _row(self, index: int) -> TrainRow:
        """A row whose advantages are loss weights, so that the generic loss is the weighted negative log-likelihood."""
        demonstration = self._demonstrations[index]
        # The loss is the mean over the B rows of: sum of action losses / mean number of actions + weight x sum of other
        # losses / mean number of others. In expectation that is the loss per action token plus the weighted one per
        # other token, whatever their numbers are: documents outnumber actions and would otherwise dominate.
        actions = np.asarray(demonstration.action_mask, dtype=np.bool_)
        length = len(actions)
        weights = np.where(
            actions,
            np.float32(1.0 / max(self._mean_actions, 1.0)),
            np.float32(self._settings.environment_weight / max(self._mean_others, 1.0)),
        )
        mask = actions.copy() if self._settings.environment_weight == 0 else np.ones(length, dtype=np.bool_)
        mask[0] = False  # the first token has no context to be predicted from
        return TrainRow(
            key=RowKey(int(index), 0),
            token_ids=np.asarray(demonstration.token_ids, dtype=np.int64),
            mask=mask,
            behavior_logprobs=np.zeros(length, dtype=np.float32),
            versions=np.where(actions, 0, NOT_SAMPLED),  # how ``supervised_sums`` distinguishes the two kinds of tokens
            kinds=np.zeros(length, dtype=np.int64),
            advantages=np.where(mask, weights, np.float32(0.0)),
        )
