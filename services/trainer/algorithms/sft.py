"""Supervised training on demonstrations: a loop over the learner's primitives, resumable at any step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from searchrl.domain.trajectory import NOT_SAMPLED
from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from services.trainer.learner.optimizers import OptimSettings, ScheduleSettings
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.learner.train_batch import IntArray, RowKey, TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings

# With ``mean_over: data_set`` rows carry their own normalization as advantages (see ``_row``), so the sum per row is
# right; a mean over tokens would normalize twice.
SFT_LOSSES: Mapping[str, LossSettings] = {
    "batch": LossSettings(policy="cross_entropy", aggregation="token_mean"),
    "data_set": LossSettings(policy="cross_entropy", aggregation="seq_mean_token_sum"),
}
MIXING_STREAM = 1
"""Second number of the shuffle's seed: keeps its random stream apart from others that use the same ``seed``."""


class SftOptimSettings(OptimSettings):
    """The optimizer of supervised training."""

    # TRL's default, for all weights of a model that was trained before; an adapter takes about ten times as much.
    learning_rate: NonNegativeFloat = Field(default=2e-5, description="Rate of AdamW.")


class SftSettings(Section):
    """Supervised training; the defaults fine-tune a model that was trained before."""

    epochs: PositiveFloat = Field(default=1.0, description="Passes over the rows; may be a fraction.")
    batch_rows: PositiveInt = Field(default=16, description="Rows of one optimizer step.")
    # More batches per bucket save padding and make batches less random.
    bucket_batches: PositiveInt = Field(default=8, description="Batches that are sorted by length together.")
    mean_over: Literal["batch", "data_set"] = Field(
        default="batch",
        description="The loss is the mean over the policy's tokens of the batch, or sums per row divided by the mean "
        "numbers of tokens of the complete data set.",
    )
    # Documents repeat names, so predicting their tokens teaches a new model to copy from its context.
    environment_weight: NonNegativeFloat = Field(
        default=0.0, description="Weight of tokens that the policy did not write; needs mean_over data_set."
    )
    optim: SftOptimSettings = Field(
        default=SftOptimSettings(), description="The optimizer; its schedule is warm-up and linear decay."
    )
    warmup_steps: NonNegativeInt = Field(default=0, description="Steps of linear warm-up.")
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="Learning rate at the end, as a factor.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.environment_weight and self.mean_over == "batch":
            raise ValueError("environment_weight needs mean_over data_set, which weighs both kinds of tokens")
        if self.optim.schedule != ScheduleSettings():
            raise ValueError("optim.schedule has no effect: warmup_steps, epochs and final_fraction set it")
        return self

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps of one pass over so many rows; the last may have fewer rows than the others."""
        return -(-rows // self.batch_rows)

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the complete training on so many rows."""
        return max(1, int(self.epochs * self.steps_per_epoch(rows)))


class SftLearner(Protocol):
    """What supervised training needs of a learner, in this process or on ranks."""

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        ...

    def forward_backward(self, batch: TrainBatch, loss: LossSettings) -> LossReport:
        """Add the gradient of the batch's loss to the accumulated gradients."""
        ...

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        """Step, and clear the gradients."""
        ...


@dataclass(frozen=True, slots=True)
class TokenDemonstration:
    """Token ids of one complete episode, and which of them the policy should have written."""

    token_ids: Sequence[int]
    action_mask: Sequence[bool]


@dataclass(frozen=True, slots=True)
class SftReport:
    """One optimizer step, counted from 0; losses are in nats per token."""

    step: int
    total_steps: int
    rows: int
    tokens: int
    loss: LossReport
    optim: OptimReport

    @property
    def action_nll(self) -> float:
        """Mean negative log-likelihood of the policy's tokens."""
        return self.loss.metrics["action_nll"]

    @property
    def environment_nll(self) -> float:
        """The same of the other trained tokens; 0 if there are none."""
        return self.loss.metrics["environment_nll"]


class SftRun:
    """Supervised training of one learner on a fixed list of demonstrations, each of them once per epoch.

    The rows of a step depend on settings, seed and the step's number alone, and the step's number is the learner's
    count of optimizer steps: to resume, load the learner and call ``run`` again.

    Raises:
        ConfigurationError: there is no demonstration.
    """

    def __init__(
        self, learner: SftLearner, demonstrations: Sequence[TokenDemonstration], settings: SftSettings, seed: int = 0
    ) -> None:
        if not demonstrations:
            raise ConfigurationError("supervised training needs demonstrations, got none")
        self._learner = learner
        self._demonstrations = demonstrations
        self._settings = settings
        self._seed = seed
        self._steps_per_epoch = settings.steps_per_epoch(len(demonstrations))
        self.total_steps = settings.total_steps(len(demonstrations))
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
        loss = self._learner.forward_backward(TrainBatch.of(rows, step), SFT_LOSSES[self._settings.mean_over])
        optim = self._learner.optim_step(self._optim)
        if optim.is_idle:  # the step would be repeated without end, because it is not counted
            raise ConfigurationError(
                f"step {step + 1}: every gradient is 0, so the model predicts each token with certainty and learns "
                "nothing more; train fewer epochs"
            )
        return SftReport(step, self.total_steps, len(rows), sum(len(row) for row in rows), loss, optim)

    def indices_of(self, step: int) -> IntArray:
        """Indices of the demonstrations that a step trains on."""
        epoch, batch = divmod(step, self._steps_per_epoch)
        return self._epoch(epoch)[batch]

    def _epoch(self, epoch: int) -> list[IntArray]:
        if self._mixed is None or self._mixed[0] != epoch:
            self._mixed = (epoch, list(self._mix(epoch)))
        return self._mixed[1]

    def _mix(self, epoch: int) -> Iterator[IntArray]:
        """Shuffle, sort by length within buckets, cut into batches, shuffle the batches."""
        size = self._settings.batch_rows
        # A stream per epoch, so that any step can be computed without the steps before it. Buckets bound what sorting
        # costs in randomness: of 8 batches of 16 rows, 128 random rows are sorted, and a batch has rows of similar
        # length with little padding.
        rng = np.random.default_rng([self._seed, MIXING_STREAM, epoch])
        order = rng.permutation(len(self._demonstrations))
        batches: list[IntArray] = []
        for start in range(0, len(order), size * self._settings.bucket_batches):
            bucket = order[start : start + size * self._settings.bucket_batches]
            bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            batches.extend(bucket[first : first + size] for first in range(0, len(bucket), size))
        return (batches[index] for index in rng.permutation(len(batches)))

    def _row(self, index: int) -> TrainRow:
        """A row whose advantages are loss weights, so that the generic loss is the weighted negative log-likelihood."""
        demonstration = self._demonstrations[index]
        # Over the data set, the loss is the mean over the B rows of: sum of action losses / mean number of actions +
        # weight x sum of other losses / mean number of others. In expectation that is the loss per action token plus
        # the weighted one per other token, whatever their numbers are: documents outnumber actions and would otherwise
        # dominate. Over the batch, the loss itself divides by the number of tokens.
        actions = np.asarray(demonstration.action_mask, dtype=np.bool_)
        length = len(actions)
        if self._settings.mean_over == "batch":
            weights = np.ones(length, dtype=np.float32)
        else:
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
