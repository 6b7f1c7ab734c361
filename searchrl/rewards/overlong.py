"""Computes the soft penalty on rollouts that come close to their token limit."""

from dataclasses import dataclass

from searchrl.domain.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class OverlongPenalty:
    """The soft overlong punishment of DAPO (2503.14476, eq. 13).

    It is 0 up to ``max_tokens - buffer_tokens`` sampled tokens, rises linearly, and is complete at ``max_tokens``. With
    a limit of 2000 and a buffer of 400, a rollout of 1800 tokens loses half of ``penalty``. Prompts and documents do
    not count: the searcher does not write them.
    """

    penalty: float
    max_tokens: int
    buffer_tokens: int

    def score(self, trajectory: Trajectory) -> float:
        """Return what is added to the reward: 0 or less."""
        excess = sum(trajectory.tokens.mask) - (self.max_tokens - self.buffer_tokens)
        return -self.penalty * min(max(excess / self.buffer_tokens, 0.0), 1.0)
