"""The learner on a GPU gives what it gives on the CPU, in every layout and precision that can be set."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import FloatArray, TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.train_rows import move_weights, random_rows
from tests.gpu.wide_rows import WIDE_VOCABULARY, wide_rows

pytestmark = pytest.mark.gpu
FULL_LOSS: dict[str, Any] = {"kl_coefficient": 0.1, "entropy_coefficient": 0.01, "llds_coefficient": 0.1}
BFLOAT16_MEAN_NATS, BFLOAT16_MAX_NATS = 0.02, 0.15
"""How far bfloat16 may be from float32 in one token's log-probability, for random weights of the usual size."""


def gradient_of(learner: Learner, rows: list[TrainRow], loss: LossSettings = LossSettings()) -> torch.Tensor:
    learner.forward_backward(TrainBatch.of(rows), loss)
    return torch.cat([p.grad.float().reshape(-1).cpu() for p in learner.model.parameters() if p.grad is not None])


def largest_difference(first: list[FloatArray], second: list[FloatArray]) -> float:
    return max(float(np.abs(one - two).max()) for one, two in zip(first, second, strict=True))


def test_log_probabilities_in_float32_equal_those_on_the_cpu(family_folder: Path, device: str, learner_on) -> None:
    rows = [*random_rows(12), *(replace(row, key=row.key._replace(part=1)) for row in random_rows(4, temperature=0.7))]
    on_cpu = learner_on(family_folder, "cpu").logprobs(rows)
    learner = learner_on(family_folder, device)
    assert next(learner.model.parameters()).device.type == device
    assert min(float(array.min()) for array in on_cpu) < -3
    assert largest_difference(on_cpu, learner.logprobs(rows)) < 1e-3


@pytest.mark.parametrize("policy", ["ppo", "gspo", "cispo", "reinforce"])
def test_loss_gradient_and_report_equal_those_on_the_cpu(qwen_folder: Path, device: str, policy, learner_on) -> None:
    loss = LossSettings(policy=policy, **FULL_LOSS)
    rows = [replace(row, reference_logprobs=row.behavior_logprobs - np.float32(0.1)) for row in wide_rows(8)]
    results = []
    for where in ("cpu", device):
        learner = learner_on(qwen_folder, where)
        report = learner.forward_backward(TrainBatch.of(rows), loss)
        results.append((report, gradient_of(learner, rows, loss)))
    (cpu_report, cpu_gradient), (report, gradient) = results
    assert report.loss == pytest.approx(cpu_report.loss, rel=1e-3, abs=1e-5)
    assert dict(report.sums) == pytest.approx(dict(cpu_report.sums), rel=1e-3, abs=1e-3)
    assert cpu_gradient.norm() > 1e-3
    assert (gradient - cpu_gradient).norm() < 1e-3 * cpu_gradient.norm()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_optimizer_step_goes_where_it_goes_on_the_cpu(qwen_folder: Path, device: str, kind: Any, learner_on) -> None:
    # a large epsilon: Adam would magnify the rounding of gradients near 0 to a full step
    optim = OptimSettings(kind=kind, learning_rate=1e-2, epsilon=1e-3, muon_learning_rate=1e-2)
    moves = []
    for where in ("cpu", device):
        learner = learner_on(qwen_folder, where)
        before = learner.publish(0).tensors
        update = UpdateSettings(optim=optim, mini_batches=1)
        report = update_policy(learner, TrainBatch.of(wide_rows(8)), LossSettings(policy="reinforce"), update)
        assert report.optim[0].grad_norm > 0 and not report.optim[0].skipped
        after = learner.publish(1).tensors
        moves.append(torch.cat([(after[name] - before[name]).reshape(-1) for name in sorted(before)]))
    on_cpu, on_gpu = moves
    allowed = 0.01 if kind == "adamw" else 0.1  # Muon makes its matrices orthogonal in bfloat16
    assert on_cpu.norm() > 0
    assert (on_gpu - on_cpu).norm() < allowed * on_cpu.norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_packed_rows_have_the_gradient_of_padded_ones(qwen_folder: Path, device: str, attention, learner_on) -> None:
    settings = {"attention": attention, "dtype": "float32"}
    allowed = 1e-3
    if attention == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            pytest.skip("the package flash_attn is not installed")
        settings["dtype"], allowed = "bfloat16", 0.05
    rows = wide_rows(10)
    padded = gradient_of(learner_on(qwen_folder, device, **settings), rows)
    packed = gradient_of(learner_on(qwen_folder, device, packed=True, **settings), rows)
    assert padded.norm() > 1e-3
    assert (padded - packed).norm() < allowed * padded.norm()


@pytest.mark.parametrize(
    "settings", [{"gradient_checkpointing": True}, {"logit_budget": 1024 * 8}, {"token_budget": 64}]
)
def test_memory_settings_do_not_change_the_gradient(qwen_folder: Path, device: str, settings, learner_on) -> None:
    rows = wide_rows(10)
    whole = gradient_of(learner_on(qwen_folder, device), rows)
    assert (whole - gradient_of(learner_on(qwen_folder, device, **settings), rows)).norm() < 1e-3 * whole.norm()


def test_bfloat16_stays_within_its_bound_of_float32(
    qwen_folder: Path, device: str, learner_on, record_property
) -> None:
    rows = wide_rows(16)
    exact = learner_on(qwen_folder, device).logprobs(rows)
    rounded = learner_on(qwen_folder, device, dtype="bfloat16").logprobs(rows)
    differences = np.concatenate(
        [np.abs(one - two)[row.mask] for row, one, two in zip(rows, exact, rounded, strict=True)]
    )
    record_property("bfloat16_nats", f"mean {differences.mean():.4f}, largest {differences.max():.4f}")
    assert 0 < differences.mean() < BFLOAT16_MEAN_NATS
    assert differences.max() < BFLOAT16_MAX_NATS


def test_a_rate_of_one_millionth_moves_the_weights_as_in_float32(qwen_folder: Path, device: str, learner_on) -> None:
    expected = move_weights(learner_on(qwen_folder, device), 10, 1e-6, WIDE_VOCABULARY)
    found = move_weights(learner_on(qwen_folder, device, dtype="bfloat16"), 10, 1e-6, WIDE_VOCABULARY)
    assert (found != 0).float().mean() > 0.99
    # the share of the float32 change that is found again: 1 would be all of it, rounded weights would give about 0
    assert float(found @ expected / expected.square().sum()) > 0.9


def test_an_update_in_bfloat16_makes_good_tokens_more_likely(qwen_folder: Path, device: str, learner_on) -> None:
    learner = learner_on(qwen_folder, device, dtype="bfloat16")
    rows = [replace(row, advantages=np.where(row.mask, np.float32(1), np.float32(0))) for row in wide_rows(8)]
    before = np.concatenate(learner.logprobs(rows)).sum()
    loss = LossSettings(policy="reinforce")
    update_policy(learner, TrainBatch.of(rows), loss, UpdateSettings(optim=OptimSettings(learning_rate=1e-3)))
    assert np.concatenate(learner.logprobs(rows)).sum() > before + 1


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("peft", {"adapter": {"kind": "lora", "rank": 8}}),
        ("peft", {"adapter": {"kind": "lora", "rank": 16}, "dtype": "bfloat16", "gradient_checkpointing": True}),
        ("bitsandbytes", {"adapter": {"kind": "qlora"}, "dtype": "bfloat16"}),
        ("torch", {"compile": True}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # hints of the compiler about speed
def test_adapters_and_compiled_layers_learn(qwen_folder: Path, device: str, package, settings, learner_on) -> None:
    pytest.importorskip(package)
    learner = learner_on(qwen_folder, device, **settings)
    rows = [replace(row, advantages=np.where(row.mask, np.float32(1), np.float32(0))) for row in wide_rows(8)]
    before = np.concatenate(learner.logprobs(rows)).sum()
    update = UpdateSettings(optim=OptimSettings(learning_rate=1e-2), mini_batches=2, epochs=2)
    update_policy(learner, TrainBatch.of(rows), LossSettings(policy="reinforce"), update)
    assert np.concatenate(learner.logprobs(rows)).sum() > before + 1


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"offload": "cpu"}], ids=str)
def test_a_sharded_model_has_the_gradients_of_a_complete_one(
    qwen_folder: Path, device: str, settings, learner_on
) -> None:
    if device == "cpu" and "offload" in settings:
        pytest.skip("nothing is offloaded from a CPU")
    batch, optim = TrainBatch.of(wide_rows(6)), OptimSettings(learning_rate=1e-3)
    norms = []
    for learner in (learner_on(qwen_folder, device), learner_on(qwen_folder, device, **settings)):
        learner.forward_backward(batch, LossSettings())
        norms.append(learner.optim_step(optim).grad_norm)
    allowed = 0.05 if "dtype" in settings else 1e-4
    assert norms[0] > 0 and norms[1] == pytest.approx(norms[0], rel=allowed)
