"""Reports of the learner's primitives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

PER_TOKEN = (
    "mismatch_kl", "abs_logprob_delta", "ratio", "entropy", "kl_reference", "clipped", "masked", "clamped",
    "value_error", "value_clipped", "value",
)  # fmt: skip
PER_OTHER_COUNT = {
    "good_logprob_delta": "good_tokens", "action_nll": "action_tokens", "environment_nll": "environment_tokens",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LossReport:
    """The loss of a batch and sums over its trained tokens; reports of ranks and mini-batches add up.

    ``sums["tokens"]`` is the number of tokens that went through the model with a loss.
    """

    loss: float = 0.0
    sums: Mapping[str, float] = field(default_factory=dict)

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
        """Means over tokens; fractions for clipped, masked and clamped tokens."""
        tokens = max(self.sums.get("tokens", 0.0), 1.0)
        metrics = {name: self.sums[name] / tokens for name in PER_TOKEN if name in self.sums}
        for name, count in PER_OTHER_COUNT.items():
            if name in self.sums:
                metrics[name] = self.sums[name] / max(self.sums[count], 1.0)
        for name in ("tokens", "padding_tokens", "skipped_rows", "micro_batches"):
            if name in self.sums:
                metrics[name] = self.sums[name]
        return metrics | {"loss": self.loss}


@dataclass(frozen=True, slots=True)
class OptimReport:
    """One optimizer step. Nothing changed where it was ``skipped``, because gradients were not finite, or ``is_idle``,
    because all were zero.
    """

    step: int
    grad_norm: float
    learning_rate: float
    skipped: bool = False
    skipped_total: int = 0
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """The weights of one policy version.

    ``tensors`` are copies: the learner may go on training while an engine loads them.
    """

    version: int
    fingerprint: str
    tensors: Mapping[str, Tensor]
