"""Computes generalized advantage estimates (GAE) of single tokens under a critic.

Estimation runs on the compressed sequence of trainable tokens: tokens between two actions (documents, padding) have no
value and no reward, and take no time step. With the mask [0, 1, 1, 0, 0, 1], steps 0, 1 and 2 are the tokens at
positions 1, 2 and 5, and the reward of the rollout is added to the token at position 5.
"""

import numpy as np
from numpy.typing import NDArray

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
    rewards = np.zeros(int(mask.sum())) if token_rewards is None else np.array(token_rewards[mask], dtype=np.float64)
    rewards[-1] += reward
    advantages[mask], returns[mask] = generalized_advantages(rewards, values[mask], gamma, gae_lambda)
    return advantages, returns
