"""Defines the budgets of one rollout: searches, tokens and seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one rollout. The three token budgets default to those of s3's training scripts.

    Attributes:
        max_searches: searches the policy may make; one more generation follows the last one.
        top_k: passages per search.
        max_selected: documents one selection may keep (strict mode).
        max_turn_tokens: sampled tokens per turn.
        max_observation_tokens: tokens of one information block; long documents are cut to fit.
        max_context_tokens: prompt plus everything after it; the rollout ends when the next turn cannot fit.
        seconds: wall-clock budget of the rollout; None for no limit.
    """

    max_searches: int = 3
    top_k: int = 3
    max_selected: int = 3
    max_turn_tokens: int = 500
    max_observation_tokens: int = 1400
    max_context_tokens: int = 8000
    seconds: float | None = None
