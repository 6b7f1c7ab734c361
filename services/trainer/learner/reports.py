"""Reports of the learner's primitives, and the registry of the numbers in them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepMetric:
    """How a sum over a batch becomes a metric of the step.

    Attributes:
        name: in ``metrics.jsonl`` and TensorBoard.
        per: the sum that it is divided by; if empty, the sum itself is the metric.
    """

    name: str
    per: str = ""


STEP_METRICS: Final[Mapping[str, StepMetric]] = {
    "tokens": StepMetric("trained_tokens"),
    "mismatch_kl": StepMetric("mismatch_kl", "tokens"),
    "abs_logprob_delta": StepMetric("abs_logprob_delta", "tokens"),
    "ratio": StepMetric("importance_ratio", "tokens"),
    "entropy": StepMetric("entropy", "tokens"),
    "kl_reference": StepMetric("kl_reference", "tokens"),
    "clipped": StepMetric("clip_fraction", "tokens"),
    "masked": StepMetric("masked_fraction", "tokens"),
    "capped": StepMetric("importance_capped_fraction", "tokens"),
    "clamped": StepMetric("clamped_fraction", "tokens"),
    "good_tokens": StepMetric("good_tokens"),
    "logprob_drop": StepMetric("logprob_drop", "good_tokens"),
    "action_tokens": StepMetric("action_tokens"),
    "action_nll": StepMetric("action_nll", "action_tokens"),
    "environment_tokens": StepMetric("environment_tokens"),
    "environment_nll": StepMetric("environment_nll", "environment_tokens"),
    "padding_tokens": StepMetric("padding_tokens"),
    "skipped_rows": StepMetric("skipped_rows"),
    "micro_batches": StepMetric("micro_batches"),
    "value_tokens": StepMetric("value_tokens"),
    "value": StepMetric("value_mean", "value_tokens"),
    "value_error": StepMetric("value_error", "value_tokens"),
    "value_clipped": StepMetric("value_clip_fraction", "value_tokens"),
}
"""Every sum that a loss may report. A sum that is not listed is an error, so that none is computed without a reader."""


@dataclass(frozen=True, slots=True)
class LossReport:
    """The loss of a batch and sums over its trained tokens; reports of ranks and mini-batches add up.

    ``sums["tokens"]`` is the number of tokens that went through the model with a loss.

    Raises:
        ValueError: a sum is not registered in ``STEP_METRICS``.
    """

    loss: float = 0.0
    sums: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := self.sums.keys() - STEP_METRICS.keys():
            raise ValueError(f"the loss reports {', '.join(sorted(unknown))}: name it in STEP_METRICS")

    @classmethod
    def merge(cls, reports: Iterable["LossReport"]) -> "LossReport":
        """Add losses and sums."""
        loss, sums = 0.0, dict[str, float]()
        for report in reports:
            loss += report.loss
            for name, value in report.sums.items():
                sums[name] = sums.get(name, 0.0) + value
        return cls(loss, sums)

    @property
    def metrics(self) -> dict[str, float]:
        """The loss and every sum, named and divided as ``STEP_METRICS`` defines."""
        # Divided here and not where the sums arise: micro-batches and ranks have different numbers of tokens, so their
        # means could not be added up. A metric without any token is 0, because JSON has no NaN.
        metrics = {"loss": self.loss}
        for source, total in self.sums.items():
            metric = STEP_METRICS[source]
            metrics[metric.name] = total / max(self.sums.get(metric.per, 0.0), 1.0) if metric.per else total
        return metrics


@dataclass(frozen=True, slots=True)
class OptimReport:
    """One optimizer step.

    Nothing changed if it was ``skipped`` (gradients were not finite) or ``is_idle`` (all gradients were zero).
    """

    step: int
    grad_norm: float
    learning_rate: float
    skipped: bool = False
    skipped_total: int = 0
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class LogprobProbe:
    """Fixed tokens and the learner's log-probabilities of ``ids[1:]`` in nats, at temperature 1."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """The weights of one policy version.

    Attributes:
        tensors: by their Hugging Face names, a tied weight once, or by peft's if they are an adapter; copies, so that
            the learner may continue training while an engine loads them.
        probe: shows which weights an engine serves; None if the run's engine needs none.
        adapter_config: what peft writes beside an adapter; None if the tensors are the complete weights.
    """

    version: int
    fingerprint: str
    tensors: Mapping[str, Tensor]
    probe: LogprobProbe | None = None
    adapter_config: Mapping[str, object] | None = None
