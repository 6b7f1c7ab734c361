"""Is the policy collapsing?"""

from collections import deque
from collections.abc import Sequence


class CollapseDetector:
    """Warns when the moving average of success falls below a fraction of the best it ever was.

    A policy that learns to give up shows this long before its reward reaches zero.
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
        """Replay the steps of a run that is resumed."""
        for success in history:
            self.observe(success)
