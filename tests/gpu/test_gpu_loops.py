"""What is composed of the learner on a GPU: PPO's critic, the reference policy, supervised training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.algorithms.gae import rows_with_gae
from services.trainer.algorithms.ppo import PpoSettings, explained_variance, update_critic
from services.trainer.algorithms.sft import SftOptimSettings, SftReport, SftRun, SftSettings, TokenDemonstration
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.open_models import open_critic, open_reference
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.advantages import GaeSettings
from services.trainer.losses.policy_losses import LossSettings, ValueLossSettings
from tests.gpu.wide_rows import wide_rows

pytestmark = pytest.mark.gpu


def test_the_critic_learns_the_same_values_as_on_the_cpu(qwen_folder: Path, device: str) -> None:
    rows = wide_rows(12)
    rewards = {row.key[:2]: float(index % 2) for index, row in enumerate(rows)}
    optim = OptimSettings(learning_rate=1e-2, epsilon=1e-3)
    settings = PpoSettings(value_loss=ValueLossSettings(clip=None), value_optim=optim)
    update = UpdateSettings(mini_batches=1, epochs=4)
    learned = []
    for where in ("cpu", device):
        critic = open_critic(qwen_folder, LearnerSettings(device=where))
        filled = rows_with_gae(rows, rewards, critic.values(rows), GaeSettings())
        update_critic(critic, TrainBatch.of(filled), settings, update)
        learned.append((filled, critic.values(rows)))
    (cpu_rows, cpu_values), (gpu_rows, values) = learned
    assert max(np.abs(array).max() for array in cpu_values) > 0.05
    for row, other, expected, value in zip(cpu_rows, gpu_rows, cpu_values, values, strict=True):
        assert np.allclose(row.advantages, other.advantages, atol=1e-3)
        assert np.allclose(expected, value, atol=1e-2)


def test_ppo_with_a_critic_runs_through_and_the_critic_explains_more(
    qwen_folder: Path, device: str, learner_on
) -> None:
    rows = wide_rows(12)
    rewards = {row.key[:2]: float(index % 2) for index, row in enumerate(rows)}
    critic = open_critic(qwen_folder, LearnerSettings(device=device))
    settings = PpoSettings(value_optim=OptimSettings(learning_rate=3e-3), value_loss=ValueLossSettings(clip=None))
    before = rows_with_gae(rows, rewards, critic.values(rows), settings.gae)
    update_critic(critic, TrainBatch.of(before), settings, UpdateSettings(mini_batches=1, epochs=20))
    after = rows_with_gae(rows, rewards, critic.values(rows), settings.gae)
    assert explained_variance(after) > explained_variance(before) + 0.1
    report = update_policy(learner_on(qwen_folder, device), TrainBatch.of(after), settings.loss, UpdateSettings())
    assert all(step.grad_norm > 0 and not step.skipped for step in report.optim)


def test_the_kl_to_the_reference_is_zero_at_first_and_then_that_of_the_cpu(
    qwen_folder: Path, device: str, learner_on
) -> None:
    loss = LossSettings(kl_coefficient=0.1, policy="reinforce")
    update = UpdateSettings(optim=OptimSettings(learning_rate=1e-2, epsilon=1e-3), mini_batches=1, epochs=3)
    found = []
    for where in ("cpu", device):
        rows = open_reference(qwen_folder, LearnerSettings(device=where)).annotate(wide_rows(8))
        learner = learner_on(qwen_folder, where)
        at_first = learner.forward_backward(TrainBatch.of(rows), loss).metrics["kl_reference"]
        assert at_first == pytest.approx(0, abs=1e-6)
        learner.optim_step(update.optim)
        update_policy(learner, TrainBatch.of(rows), loss, update)
        found.append(learner.forward_backward(TrainBatch.of(rows), loss).metrics["kl_reference"])
    assert found[0] > 1e-5
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"packed": True, "gradient_checkpointing": True}])
def test_supervised_training_lowers_the_loss(qwen_folder: Path, device: str, settings, learner_on) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 20, int(rng.integers(3, 12))).tolist() for _ in range(48)]
    made = [TokenDemonstration([*p, *[p[0]] * 3], [False] * len(p) + [True] * 3) for p in prompts]
    optim = SftOptimSettings(kind="muon", learning_rate=3e-3, muon_learning_rate=0.02, betas=(0.9, 0.98))
    run = SftRun(
        learner_on(qwen_folder, device, **settings),
        made,
        SftSettings(batch_rows=16, warmup_steps=2, epochs=10, optim=optim),
    )
    reports: list[SftReport] = []
    run.run(on_step=reports.append)
    losses = [report.action_nll for report in reports]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < losses[0] - 1


def test_clipping_against_the_proximal_policy_works(qwen_folder: Path, device: str, learner_on) -> None:
    learner = learner_on(qwen_folder, device)
    sampled = learner.logprobs(wide_rows(8))
    rows = [replace(row, behavior_logprobs=array) for row, array in zip(wide_rows(8), sampled, strict=True)]
    update = UpdateSettings(optim=OptimSettings(learning_rate=1e-3))
    report = update_policy(learner, TrainBatch.of(rows), LossSettings(old_policy="proximal"), update)
    assert report.loss.metrics["importance_ratio"] == pytest.approx(1, abs=0.2)
