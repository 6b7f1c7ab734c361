"""Detects a collapse of the policy from its success rate."""

from collections import deque
from collections.abc import Sequence


class CollapseDetector:
    """Warns while the moving average of success is below a fraction of its best value so far.

    A policy that learns to give up shows this long before its reward reaches zero.

    Args:
        window: steps of the average; a shorter one warns about noise, a longer one warns later.
        fraction: share of the best average below which it warns.
    """

    def __init__(self, window: int = 10, fraction: float = 0.5) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._fraction = fraction
        self.best = 0.0

    def observe(self, success: float) -> bool:
        """Add one step; True if the policy seems to collapse."""
        self._recent.append(success)
        if len(self._recent) < (self._recent.maxlen or 1):
            return False
        average = sum(self._recent) / len(self._recent)
        self.best = max(self.best, average)
        return average < self._fraction * self.best

    def restore(self, history: Sequence[float]) -> None:
        """Observe the earlier steps of a resumed run."""
        for success in history:
            self.observe(success)
