"""Generalized advantages run over trainable tokens only.

Observation tokens and their values change nothing, and the terminal reward is given at the last trainable token.
"""

import numpy as np
import pytest

from services.trainer.algorithms.gae import generalized_advantages, masked_advantages

VALUES = np.array([0.5, 0.2, 0.4])


def row_with_gaps(gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Three trainable tokens with ``gap`` observation tokens of value 100 in the middle and at the end."""
    mask = np.array([False, True, *[False] * gap, True, True, *[False] * gap])
    values = np.full(len(mask), 100.0)
    values[mask] = VALUES
    return mask, values


def test_two_steps_by_hand() -> None:
    # gamma .9, lambda .5, rewards 0, 1, values .5, .2:
    # last: 1 - .2 = .8; first: 0 + .9 * .2 - .5 = -.32, plus .45 * .8 = .36 -> .04
    advantages, returns = generalized_advantages(np.array([0.0, 1.0]), np.array([0.5, 0.2]), 0.9, 0.5)
    assert advantages.tolist() == pytest.approx([0.04, 0.8])
    assert returns.tolist() == pytest.approx([0.54, 1.0])


def test_with_gamma_and_lambda_one_the_return_of_every_token_is_the_reward() -> None:
    mask, values = row_with_gaps(2)
    advantages, returns = masked_advantages(mask, values, 3.0)
    assert returns[mask].tolist() == pytest.approx([3.0, 3.0, 3.0])
    assert advantages[mask].tolist() == pytest.approx((3.0 - VALUES).tolist())


@pytest.mark.parametrize("gap", [1, 50])
def test_c6_observation_tokens_do_not_change_the_advantages(gap: int) -> None:
    plain_mask, plain_values = row_with_gaps(0)
    expected, _ = masked_advantages(plain_mask, plain_values, 1.0, gamma=0.9, gae_lambda=0.9)
    mask, values = row_with_gaps(gap)
    advantages, returns = masked_advantages(mask, values, 1.0, gamma=0.9, gae_lambda=0.9)
    assert advantages[mask].tolist() == expected[plain_mask].tolist()
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_c37_the_reward_comes_at_the_last_trainable_token_even_if_the_row_ends_in_an_observation() -> None:
    mask = np.array([False, True, True, False, False])
    advantages, _ = masked_advantages(mask, np.zeros(5), 1.0, gamma=1.0, gae_lambda=0.0)
    assert advantages.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_token_rewards_are_added_at_their_own_tokens_and_only_inside_the_mask() -> None:
    mask = np.array([False, True, False, True])
    penalties = np.array([9.0, -0.1, 9.0, -0.2])
    advantages, _ = masked_advantages(mask, np.zeros(4), 1.0, gamma=1.0, gae_lambda=0.0, token_rewards=penalties)
    assert advantages.tolist() == pytest.approx([0.0, -0.1, 0.0, 0.8])


def test_a_row_without_trainable_tokens_has_no_advantages() -> None:
    advantages, returns = masked_advantages(np.zeros(3, dtype=bool), np.ones(3), 1.0)
    assert advantages.tolist() == returns.tolist() == [0.0, 0.0, 0.0]
