"""Computes group advantages in reward units, one per rollout.

Statistics cover the usable members of a group only: a member whose rollout failed by infrastructure, or that is
masked, is passed as None, enters no mean and no standard deviation, and gets advantage 0. Rewards [1, 3, 2, None]
therefore give the advantages of [1, 3, 2] and a final 0.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GroupAdvantage = Literal["mean_baseline", "group_std", "leave_one_out", "reward"]
EQUAL_REWARDS = 1e-6
"""Relative spread up to which rewards count as equal. Rounding is far below it (0.1 + 0.2 differs from 0.3 by 6e-17); a
difference that a reward is meant to express is far above it."""


def are_equal(rewards: Sequence[float]) -> bool:
    """Whether rewards are equal up to rounding, so that their comparison carries no signal."""
    values = np.asarray(rewards, dtype=np.float64)
    return len(values) < 2 or bool(np.ptp(values) <= EQUAL_REWARDS * max(1.0, float(np.abs(values).max())))


def group_advantages(
    rewards: Sequence[float | None], kind: GroupAdvantage = "mean_baseline", scale: float = 1.0
) -> NDArray[np.float64]:
    """Return one advantage per member of one group, times ``scale``.

    - ``mean_baseline``: r - mean(r), as in Dr. GRPO (2503.20783).
    - ``group_std``: (r - mean(r)) / std(r) with the sample standard deviation, as in GRPO (2402.03300).
    - ``leave_one_out``: r - mean of the other members' rewards (RLOO, 2402.14740).
    - ``reward``: r itself, for critics and global baselines.

    A group whose usable rewards are all equal up to rounding, or that has a single usable member, gets exactly 0
    (except with ``reward``), so that a standard deviation never amplifies noise.
    """
    values = np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float64)
    usable = ~np.isnan(values)
    advantages = np.zeros(len(values))
    members = values[usable]
    if kind == "reward":
        advantages[usable] = members
        return scale * advantages
    if are_equal(members.tolist()):
        return advantages
    centered = members - members.mean()
    if kind == "group_std":
        centered = centered / members.std(ddof=1)
    elif kind == "leave_one_out":
        centered = centered * len(members) / (len(members) - 1)
    advantages[usable] = scale * centered
    return advantages
