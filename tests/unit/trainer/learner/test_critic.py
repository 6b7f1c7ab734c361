"""The critic: its values and losses ignore observations, it learns, and it resumes to the bit.

Also the advantages that it leads to: GAE over one episode of several rows, whitening, and the KL penalty in the reward.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.trainer.algorithms.base import UpdateSettings
from services.trainer.algorithms.gae import rows_with_gae
from services.trainer.algorithms.ppo import PpoSettings, update_critic
from services.trainer.learner.critic import Critic
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.open_models import open_critic
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import RowKey, TrainBatch, TrainRow
from services.trainer.losses.advantages import GaeSettings
from services.trainer.losses.policy_losses import ValueLossSettings
from tests.fakes.train_rows import random_rows


def critic_of(folder: Path) -> Critic:
    return open_critic(folder, LearnerSettings())


def filled(rows: list[TrainRow], seed: int = 0) -> list[TrainRow]:
    rng = np.random.default_rng(seed)
    return [
        replace(
            row,
            values_old=rng.normal(size=len(row)).astype(np.float32),
            returns=rng.normal(size=len(row)).astype(np.float32),
        )
        for row in rows
    ]


def test_a_new_critic_values_everything_at_zero(model_folder: Path) -> None:
    for values in critic_of(model_folder).values(random_rows(3)):
        assert not values.any()


def test_values_and_returns_of_observations_change_neither_loss_nor_gradient(model_folder: Path) -> None:
    rows = filled(random_rows(4))
    spoiled: list[TrainRow] = []
    for row in rows:
        assert row.returns is not None and row.values_old is not None
        returns = np.where(row.mask, row.returns, 1e6).astype(np.float32)
        values_old = np.where(row.mask, row.values_old, -1e6).astype(np.float32)
        spoiled.append(replace(row, returns=returns, values_old=values_old))
    clean = critic_of(model_folder).forward_backward(TrainBatch.of(rows), ValueLossSettings())
    assert critic_of(model_folder).forward_backward(TrainBatch.of(spoiled), ValueLossSettings()) == clean


def test_training_brings_values_close_to_returns(model_folder: Path) -> None:
    critic = critic_of(model_folder)
    rows = [replace(row, returns=np.full(len(row), 0.7, np.float32)) for row in filled(random_rows(6))]
    settings = PpoSettings(value_loss=ValueLossSettings(clip=None), value_optim=OptimSettings(learning_rate=3e-3))
    update_critic(critic, TrainBatch.of(rows), settings, UpdateSettings(epochs=30))
    for row, values in zip(rows, critic.values(rows), strict=True):
        assert np.abs(values[row.mask] - 0.7).mean() < 0.1
        assert not values[~row.mask].any()


def test_a_resumed_critic_equals_an_uninterrupted_one_to_the_bit(model_folder: Path, tmp_path: Path) -> None:
    first, second = critic_of(model_folder), critic_of(model_folder)
    batches = [TrainBatch.of(filled(random_rows(4, seed=seed))) for seed in range(2)]
    update_critic(first, batches[0], PpoSettings(), UpdateSettings())
    first.save(tmp_path / "critic")
    second.load(tmp_path / "critic")
    for critic in (first, second):
        update_critic(critic, batches[1], PpoSettings(), UpdateSettings())
    for one, other in zip(first.values(batches[0].rows), second.values(batches[0].rows), strict=True):
        assert np.array_equal(one, other)


def test_the_value_loss_needs_its_targets(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="values_old and returns"):
        critic_of(model_folder).forward_backward(TrainBatch.of(random_rows(1)), ValueLossSettings())


def plain_row(key: RowKey, mask: list[bool]) -> TrainRow:
    return replace(
        random_rows(1, shortest=len(mask), longest=len(mask) + 1)[0], key=key, mask=np.array(mask), weight=1.0
    )


def test_a_rollout_split_into_rows_is_one_episode() -> None:
    full = plain_row(RowKey(0, 0), [False, True, True, False, True])
    values = np.array([50.0, 0.5, 0.2, 50.0, 0.4], dtype=np.float32)
    parts = [plain_row(RowKey(0, 0, 0), [False, True, True]), plain_row(RowKey(0, 0, 1), [False, True])]
    settings = GaeSettings(gamma=0.9, gae_lambda=0.9, whiten=False)
    (one,) = rows_with_gae([full], {(0, 0): 1.0}, [values], settings)
    split = rows_with_gae(list(reversed(parts)), {(0, 0): 1.0}, [values[3:], values[:3]], settings)
    joined = np.concatenate([row.advantages[row.mask] for row in split])
    assert np.allclose(joined, one.advantages[one.mask])
    assert [row.key.part for row in split] == [0, 1]


def test_advantages_are_whitened_over_trainable_tokens_and_returns_are_not() -> None:
    rows = random_rows(6)
    values = [np.where(row.mask, 0.1, 99.0).astype(np.float32) for row in rows]
    rewards = {row.key[:2]: float(row.key.rollout_index) for row in rows}
    done = rows_with_gae(rows, rewards, values, GaeSettings(gamma=0.9, gae_lambda=0.9))
    flat = np.concatenate([row.advantages[row.mask] for row in done])
    assert flat.mean() == pytest.approx(0.0, abs=1e-6) and flat.std() == pytest.approx(1.0, abs=1e-4)
    assert all(not row.advantages[~row.mask].any() for row in done)
    plain = rows_with_gae(rows, rewards, values, GaeSettings(gamma=0.9, gae_lambda=0.9, whiten=False))
    for one, other in zip(done, plain, strict=True):
        assert one.returns is not None and other.returns is not None
        assert np.array_equal(one.returns, other.returns)


def test_the_kl_penalty_in_the_reward_is_k1_at_every_token() -> None:
    row = plain_row(RowKey(0, 0), [False, True, False, True])
    row = replace(
        row,
        behavior_logprobs=np.array([0, -1.0, 0, -2.0], dtype=np.float32),
        reference_logprobs=np.array([9, -1.5, 9, -1.0], dtype=np.float32),
    )
    settings = GaeSettings(gamma=1.0, gae_lambda=0.0, whiten=False, kl_coefficient=0.1)
    (done,) = rows_with_gae([row], {(0, 0): 1.0}, [np.zeros(4, np.float32)], settings)
    # k1 = .5 at the first action, -1 at the last: rewards -.05 and 1 + .1
    assert done.advantages.tolist() == pytest.approx([0.0, -0.05, 0.0, 1.1])
    with pytest.raises(ValueError, match="reference_logprobs"):
        rows_with_gae([random_rows(1)[0]], {(0, 0): 1.0}, [np.zeros(len(random_rows(1)[0]), np.float32)], settings)


def test_gradients_of_the_critic_reach_its_own_copy_of_the_model_only(model_folder: Path) -> None:
    critic = critic_of(model_folder)
    other = critic_of(model_folder)
    rows = filled(random_rows(4))
    update_critic(critic, TrainBatch.of(rows), PpoSettings(), UpdateSettings(epochs=2))
    assert any(values.any() for values in critic.values(rows))
    assert not any(values.any() for values in other.values(rows))
    assert torch.isfinite(torch.tensor(float(np.abs(critic.values(rows)[0]).sum())))
