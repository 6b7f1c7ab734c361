"""Turns the rewards of rollouts, and the KL in them, into advantages and returns of single tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType

import numpy as np

from services.trainer.algorithms.base import StepRows, usable_members
from services.trainer.learner.train_batch import BoolArray, FloatArray, TrainRow, find_turns, rows_from_trajectories
from services.trainer.losses.advantages import GaeSettings, Moments, group_advantages, masked_advantages, whiten
from services.trainer.rollouts.group import Group

RolloutRewards = Mapping[tuple[int, int], float]
"""Rewards by group id and rollout index."""
TurnRewards = Mapping[tuple[int, int], tuple[float | None, ...]]
"""Process rewards of a rollout's turns, by group id and rollout index."""


def reward_rows(groups: Sequence[Group], temperature: float) -> StepRows:
    """Return one row per usable rollout without advantages, and the rewards by group and rollout."""
    scored = [member for group in groups for member in usable_members(group, [0.0] * len(group.rollouts))]
    rewards = {
        (group.prompt.group_id, rollout.rollout_index): reward
        for group in groups
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
        if reward is not None
    }
    turns = {
        (group.prompt.group_id, rollout.rollout_index): found
        for group in groups
        for rollout, found in zip(group.rollouts, group.turn_rewards, strict=True)
        if found
    }
    return StepRows(rows_from_trajectories(scored, temperature), rewards, turns)


def rows_with_gae(
    rows: Sequence[TrainRow],
    rewards: RolloutRewards,
    values: Sequence[FloatArray],
    settings: GaeSettings,
    turn_rewards: TurnRewards = MappingProxyType({}),
) -> list[TrainRow]:
    """Fill advantages, returns and old values.

    The rows of one rollout are one episode, with its reward at its last trainable token. The positions of the mask are
    its time steps. Whitening uses the moments of all rows together, but of none with weight 0.

    Args:
        rewards: by (group_id, rollout_index).
        turn_rewards: the same for process rewards, each of which is earned at the last token of its turn.
        values: the critic's values before the update, one array per row.

    Raises:
        ValueError: a KL penalty without reference log-probabilities.
    """
    pairs = sorted(zip(rows, values, strict=True), key=lambda pair: pair[0].key)
    filled: list[TrainRow] = []
    for rollout, group in groupby(pairs, key=lambda pair: pair[0].key[:2]):
        filled.extend(_episode(list(group), rewards[rollout], settings, turn_rewards.get(rollout, ())))
    if not settings.whiten:
        return filled
    # Over the batch, not per rollout: with gamma and lambda 1 a token's advantage is the rollout's reward minus the
    # value, and subtracting the mean of each rollout would remove the reward.
    counted = [row for row in filled if row.weight]
    moments = Moments.of([row.advantages for row in counted], [row.mask for row in counted])
    whitened = [whiten(row.advantages, row.mask, moments, min_std=settings.min_std) for row in filled]
    return [replace(row, advantages=array.astype(np.float32)) for row, array in zip(filled, whitened, strict=True)]


def _episode(
    pairs: list[tuple[TrainRow, FloatArray]],
    reward: float,
    settings: GaeSettings,
    turn_rewards: Sequence[float | None],
) -> list[TrainRow]:
    # The rows of a rollout are joined in the order of their parts: GAE must run over the complete episode, because the
    # reward at its end is credited to the tokens of earlier parts, too.
    mask = np.concatenate([row.mask for row, _ in pairs])
    values = np.concatenate([array for _, array in pairs])
    penalties = None
    if settings.kl_coefficient:
        penalties = np.concatenate([-settings.kl_coefficient * _k1(row) for row, _ in pairs])
    if turn_rewards:
        earned = _at_turn_ends(mask, turn_rewards)
        penalties = earned if penalties is None else penalties + earned
    advantages, returns = masked_advantages(
        mask, values, reward, gamma=settings.gamma, gae_lambda=settings.gae_lambda, token_rewards=penalties
    )
    ends = np.cumsum([len(row) for row, _ in pairs])
    return [
        replace(
            row,
            advantages=advantages[end - len(row) : end].astype(np.float32),
            returns=returns[end - len(row) : end].astype(np.float32),
            values_old=array,
        )
        for (row, array), end in zip(pairs, ends, strict=True)
    ]


def _at_turn_ends(mask: BoolArray, turn_rewards: Sequence[float | None]) -> FloatArray:
    """Place each turn's process reward at its last token; all at the last one if the turns cannot be told apart."""
    placed = np.zeros(len(mask), dtype=np.float32)
    runs = find_turns(mask, len(turn_rewards))
    ends = [run.stop - 1 for run in runs] if runs else [int(np.flatnonzero(mask)[-1])] * len(turn_rewards)
    for end, reward in zip(ends, turn_rewards, strict=True):
        placed[end] += reward or 0.0
    return placed


def _k1(row: TrainRow) -> FloatArray:
    # k1 of the KL to the reference. Of the sampler, not of the current policy: a penalty in the reward belongs to the
    # sampled tokens and is fixed before the update, as the reward is.
    if row.reference_logprobs is None:
        raise ValueError("a KL penalty in the reward needs reference_logprobs in every row")
    return row.behavior_logprobs - row.reference_logprobs


def rows_with_returns(
    rows: Sequence[TrainRow],
    rewards: RolloutRewards,
    *,
    gamma: float,
    kl_coefficient: float,
    min_std: float,
    turn_rewards: TurnRewards = MappingProxyType({}),
) -> list[TrainRow]:
    """Fill advantages without a critic: what is still earned from a token on, whitened over all tokens of the batch.

    Raises:
        ValueError: a KL penalty without reference log-probabilities.
    """
    # With a value of 0 everywhere and lambda 1, GAE is the return itself.
    settings = GaeSettings(gamma=gamma, gae_lambda=1.0, whiten=True, min_std=min_std, kl_coefficient=kl_coefficient)
    zeros = [np.zeros(len(row), dtype=np.float32) for row in rows]
    filled = rows_with_gae(rows, rewards, zeros, settings, turn_rewards)
    return [replace(row, returns=None, values_old=None) for row in filled]


def leave_one_out_rows(rows: Sequence[TrainRow], rewards: RolloutRewards, kl_coefficient: float) -> list[TrainRow]:
    """Fill advantages of RLOO: a rollout's reward less its KL, compared with the mean of the others of its group.

    Example: rewards 1 and 0 with KLs of 2 and 4 nats at a coefficient of 0.1 are worth 0.8 and -0.4, so the advantages
    are 1.2 and -1.2.

    Raises:
        ValueError: a KL penalty without reference log-probabilities.
    """
    # The KL is that of the complete rollout, which RLOO treats as one action: the sum over the tokens of all its rows.
    worth = dict(rewards)
    for row in rows if kl_coefficient else ():
        worth[row.key[:2]] -= kl_coefficient * float(_k1(row)[row.mask].sum(dtype=np.float64))
    advantages: dict[tuple[int, int], float] = {}
    for _, members in groupby(sorted({row.key[:2] for row in rows}), key=lambda rollout: rollout[0]):
        group = list(members)
        values = group_advantages([worth[rollout] for rollout in group], "leave_one_out")
        advantages.update(zip(group, values.tolist(), strict=True))
    return [replace(row, advantages=row.mask * np.float32(advantages[row.key[:2]])) for row in rows]
