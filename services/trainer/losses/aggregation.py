"""Computes the coefficient with which each row's token losses enter the loss.

Every reduction is a sum of token losses times one coefficient per row, and the coefficient depends only on counts of
the complete optimizer batch. Micro-batches and ranks therefore add up to the same loss however the rows are
distributed. Example: rows of 2 and 6 trainable tokens have the coefficient 1/8 each under ``token_mean``, also where
each row is a micro-batch of its own; means per micro-batch would be weights of 1/2 and 1/6.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_sum_const", "prompt_mean"]


@dataclass(frozen=True, slots=True)
class RowCount:
    """What one row contributes to the counts: its prompt, its rollout, its trainable tokens and its weight."""

    prompt: int
    rollout: tuple[int, int]
    tokens: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Denominators:
    """Counts over the complete optimizer batch, all ranks included.

    Rows of weight 0 or without trainable tokens are not counted.
    """

    tokens: int
    rollouts: int
    prompts: int
    tokens_of_rollout: dict[tuple[int, int], int]
    tokens_of_prompt: dict[int, int]

    @classmethod
    def count(cls, rows: Sequence[RowCount]) -> "Denominators":
        """Count every row that can have a loss."""
        by_rollout: Counter[tuple[int, int]] = Counter()
        by_prompt: Counter[int] = Counter()
        for row in rows:
            if row.tokens and row.weight:
                by_rollout[row.rollout] += row.tokens
                by_prompt[row.prompt] += row.tokens
        return cls(by_rollout.total(), len(by_rollout), len(by_prompt), dict(by_rollout), dict(by_prompt))


def row_coefficient(
    row: RowCount, denominators: Denominators, aggregation: Aggregation, constant: float | None = None
) -> float:
    """Return the factor of the row's summed token losses.

    With L the sum of a row's token losses, R rollouts, P prompts and N trainable tokens in the optimizer batch:

    - ``token_mean``: sum of L / N.
    - ``seq_mean_token_mean``: mean over rollouts of (L / tokens of the rollout).
    - ``seq_mean_token_sum``: mean over rollouts of L.
    - ``seq_sum_const``: mean over rollouts of (L / constant); the constant is a setting, never a padded width.
    - ``prompt_mean``: mean over prompts of (sum of the prompt's L / tokens of the prompt).

    A rollout that was split into several rows counts once.

    Raises:
        ValueError: ``seq_sum_const`` without a constant.
    """
    # such a row is in no count, so its rollout or prompt may be missing below
    if not row.tokens or not row.weight:
        return 0.0
    if aggregation == "token_mean":
        return row.weight / denominators.tokens
    if aggregation == "seq_mean_token_mean":
        return row.weight / (denominators.tokens_of_rollout[row.rollout] * denominators.rollouts)
    if aggregation == "seq_mean_token_sum":
        return row.weight / denominators.rollouts
    # DAPO's token mean, but per question: without it, a question with long rollouts weighs more than one with short.
    if aggregation == "prompt_mean":
        return row.weight / (denominators.tokens_of_prompt[row.prompt] * denominators.prompts)
    if constant is None:
        raise ValueError("seq_sum_const needs a constant")
    return row.weight / (constant * denominators.rollouts)
