"""Computes advantages: of a rollout in its group, and of single tokens under a critic (GAE), with whitening.

Group statistics cover the usable members of a group only: a member whose rollout failed by infrastructure, or that is
masked, is passed as None, enters no mean and no standard deviation, and gets advantage 0. Rewards [1, 3, 2, None]
therefore give the advantages of [1, 3, 2] and a final 0.

GAE runs on the compressed sequence of trainable tokens: tokens between two actions (documents, padding) have no value
and no reward, and take no time step. With the mask [0, 1, 1, 0, 0, 1], steps 0, 1 and 2 are the tokens at positions 1,
2 and 5, and the reward of the rollout is added to the token at position 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    NonNegativeFloat,
)

from searchrl.platform.settings import Section

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
    # float64, on which ``EQUAL_REWARDS`` relies: the rounding of float32, 6e-8, is not far enough below it
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
        # With n members of sum s: r - (s - r) / (n - 1) = n / (n - 1) x (r - s / n). Rewards [1, 0, 0, 0] give 1 for
        # the first (the others average 0) and -1/3 for each of the others.
        centered = centered * len(members) / (len(members) - 1)
    advantages[usable] = scale * centered
    return advantages


def process_advantages(
    turn_rewards: Sequence[Sequence[float | None]], kind: GroupAdvantage = "mean_baseline", scale: float = 1.0
) -> list[list[float]]:
    """Return an advantage for each turn of each member of one group (process supervision of GRPO, 2402.03300, 4.1.3).

    The rewards of all turns of the group are compared with each other, as ``group_advantages`` compares members, and a
    turn's advantage is the sum over it and the turns after it. Turns without a reward (None) are in no statistic.
    Example with ``mean_baseline``: turns [1, 0] and [0, None] have the mean 1/3, so 2/3, -1/3 and -1/3: the advantages
    are [1/3, -1/3] and [-1/3, 0].
    """
    flat = [reward for turns in turn_rewards for reward in turns]
    # a turn has no other turns of its own group to leave out
    compared = group_advantages(flat, "mean_baseline" if kind == "leave_one_out" else kind, scale).tolist()
    advantages: list[list[float]] = []
    for turns in turn_rewards:
        own, compared = compared[: len(turns)], compared[len(turns) :]
        advantages.append(list(accumulate(reversed(own)))[::-1])
    return advantages


class GaeSettings(Section):
    """Advantages under a critic."""

    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount per trainable token.")
    gae_lambda: float = Field(default=1.0, ge=0, le=1, description="Lambda of generalized advantage estimation.")
    whiten: bool = Field(default=True, description="Bring advantages to mean 0 and variance 1 over trainable tokens.")
    min_std: NonNegativeFloat = Field(
        default=0.1, description="Whitening never divides by less, in reward units, so that it cannot amplify noise."
    )
    kl_coefficient: NonNegativeFloat = Field(default=0.0, description="Penalty per token: times k1 to the reference.")


Floats = NDArray[np.float64]


def generalized_advantages(
    rewards: NDArray[np.floating], values: NDArray[np.floating], gamma: float, gae_lambda: float
) -> tuple[Floats, Floats]:
    """GAE (Schulman et al. 2016, eq. 16) over one finished episode; the value after the last step is 0.

    Args:
        rewards, values: one entry per trainable token, in order.
        gae_lambda: weight of later TD errors; 0 gives one-step errors, 1 the complete return.

    Returns:
        Advantages, and returns = advantages + values.
    """
    advantages = np.zeros(len(values), dtype=np.float64)
    following_value, following_advantage = 0.0, 0.0
    for step in range(len(values) - 1, -1, -1):  # backward: each step needs the advantage of the following one
        delta = float(rewards[step]) + gamma * following_value - float(values[step])
        following_advantage = delta + gamma * gae_lambda * following_advantage
        following_value = float(values[step])
        advantages[step] = following_advantage
    return advantages, advantages + np.asarray(values, dtype=np.float64)


def masked_advantages(
    mask: NDArray[np.bool_],
    values: NDArray[np.floating],
    reward: float,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    token_rewards: NDArray[np.floating] | None = None,
) -> tuple[Floats, Floats]:
    """GAE of one row; arrays have one entry per token, and entries outside the mask are neither read nor written.

    Args:
        reward: of the entire rollout; it is added to the last trainable token, also where observations follow it.
        token_rewards: added at their own tokens, e.g. a KL penalty.

    Returns:
        Advantages and returns at the positions of the mask, 0 elsewhere.
    """
    advantages, returns = np.zeros(len(mask)), np.zeros(len(mask))
    if not mask.any():
        return advantages, returns
    # a copy in either case, because the reward is added in place
    rewards = np.zeros(int(mask.sum())) if token_rewards is None else np.array(token_rewards[mask], dtype=np.float64)
    rewards[-1] += reward
    advantages[mask], returns[mask] = generalized_advantages(rewards, values[mask], gamma, gae_lambda)
    return advantages, returns


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and variance of the trainable tokens of a batch."""

    count: float
    mean: float
    variance: float

    @classmethod
    def of(
        cls,
        arrays: Sequence[NDArray[np.floating]],
        masks: Sequence[NDArray[np.bool_]],
    ) -> "Moments":
        """Measure masked values only.

        The mean is computed first and the squared distances to it second: a single pass (E[x^2] - E[x]^2) would lose
        precision where the mean is large compared with the deviation.
        """
        picked = [np.asarray(a, dtype=np.float64)[m] for a, m in zip(arrays, masks, strict=True)]
        flat = np.concatenate(picked) if picked else np.zeros(0)
        count = float(len(flat))
        mean = float(flat.sum()) / max(count, 1.0)
        return cls(count, mean, float(((flat - mean) ** 2).sum()) / max(count, 1.0))


def whiten(
    array: NDArray[np.floating],
    mask: NDArray[np.bool_],
    moments: Moments,
    *,
    min_std: float = 0.0,
) -> NDArray[np.float64]:
    """Scale the masked values to mean 0 and unit variance; 0 elsewhere.

    A batch whose standard deviation is below ``min_std`` is not scaled up to unit variance: once every rollout earns
    the same reward, the remaining variation is the critic's noise.
    """
    whitened = np.zeros(len(array))
    shifted = np.asarray(array, dtype=np.float64)[mask] - moments.mean
    # 1e-8 keeps the division finite for a constant batch when ``min_std`` is 0
    whitened[mask] = shifted / max(np.sqrt(moments.variance + 1e-8), min_std)
    return whitened
