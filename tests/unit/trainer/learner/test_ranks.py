"""Models sharded over ranks train like those of one process, on real gloo groups.

Gradients, losses, values and checkpoints are those of one process for any number of rows; each rank holds its part of
weights and moments, and reads no more from the model's files.
"""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from services.trainer.algorithms.base import StepRows, UpdateSettings, update_step
from services.trainer.algorithms.ppo import Ppo, PpoSettings
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.model_folder import fingerprint_tensors
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ranks import ALONE, Ranks, join_ranks
from services.trainer.learner.reports import LossReport
from services.trainer.learner.sharding import complete, local_part
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.learner.weight_files import WeightFiles
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.train_rows import random_rows, write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BUDGET = 100  # tokens, two rows of average length: seven rows need several micro-batches
LOSS = LossSettings(aggregation="seq_mean_token_mean")
OPTIM = OptimSettings(learning_rate=1e-3)
PRELOADED = ["torch", "transformers.models.qwen3.modeling_qwen3", "services.trainer.algorithms"]
Work = Callable[..., object]


def _run_rank(rank: int, size: int, results: Path, work: Work, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(results / "store"), size)  # pyright: ignore[reportPrivateImportUsage]
    join_ranks(Ranks(rank, size), store, "cpu")
    torch.save(work(Ranks(rank, size), *arguments), results / f"{rank}.pt")
    dist.destroy_process_group()


def on_ranks(size: int, results: Path, work: Work, *arguments: object) -> list[Any]:
    """Run ``work`` in ``size`` processes joined by gloo, and return what each returned."""
    # A fork server without threads imports the heavy modules once; ranks are forked from it.
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    results.mkdir(exist_ok=True)
    multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
        _run_rank, args=(size, results, work, arguments), nprocs=size, join=True, start_method="forkserver"
    )
    return [torch.load(results / f"{rank}.pt", weights_only=False) for rank in range(size)]


def settings_of(**settings: Any) -> LearnerSettings:
    return LearnerSettings.model_validate({"token_budget": BUDGET} | settings)


def complete_gradient(module: nn.Module) -> Tensor:
    parts = [complete(p.grad) for _, p in sorted(module.named_parameters()) if p.grad is not None]
    return torch.cat([part.reshape(-1) for part in parts])


def bytes_of(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Bytes that this rank holds, and bytes of the complete tensors."""
    held = sum(local_part(tensor).nbytes for tensor in tensors.values())
    return held, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def moments_of(learner: Any) -> dict[str, Tensor]:
    optimizer = learner._trained._optimizer
    return {
        f"{kind}/{name}/{key}": moment
        for kind, parameters in optimizer.state_dict().items()
        for name, moments in parameters.items()
        for key, moment in moments.items()
        if moment.dim()
    }


@dataclass
class Trained:
    """What two optimizer steps left."""

    logprobs: list[np.ndarray]
    report: LossReport
    gradient: Tensor
    norms: list[float]
    weights: Mapping[str, Tensor]
    held: list[tuple[int, int]]


def train(ranks: Ranks, folder: Path, rows: int, silent: int, settings: LearnerSettings) -> Trained:
    """Score and train on random rows, the last ``silent`` of which have no token of the policy's."""
    learner = Learner.from_folder(folder, settings, 0, ranks)
    every = random_rows(rows)
    for row in every[rows - silent :]:
        row.mask[:] = False
    batch = TrainBatch.of(every)
    logprobs = learner.logprobs(batch.rows)
    report = learner.forward_backward(batch, LOSS)
    gradient = complete_gradient(learner.policy)
    norms = [learner.optim_step(OPTIM).grad_norm]
    learner.forward_backward(batch, LOSS)
    norms.append(learner.optim_step(OPTIM).grad_norm)
    held = [bytes_of(learner._trained.tensors()), bytes_of(moments_of(learner))]
    return Trained(logprobs, report, gradient, norms, learner.publish(1).tensors, held)


@pytest.mark.parametrize(
    ("size", "rows", "silent", "options"),
    [
        (2, 7, 0, {}),
        (4, 7, 0, {}),
        (4, 2, 0, {}),  # two ranks have no rows
        (2, 4, 3, {}),  # one rank has rows without trainable tokens only
        (2, 7, 0, {"gradient_checkpointing": True, "packed": True, "logit_budget": 200}),
    ],
)
def test_ranks_train_like_one_process_and_hold_their_part(model_folder, tmp_path, size, rows, silent, options) -> None:
    one = train(ALONE, model_folder, rows, silent, settings_of(**options))
    found: list[Trained] = on_ranks(size, tmp_path, train, model_folder, rows, silent, settings_of(**options))
    assert one.gradient.abs().max() > 1e-3
    for each in found:
        assert (each.gradient - one.gradient).abs().max() < 1e-6
        assert each.report.loss == pytest.approx(one.report.loss, abs=1e-6)
        assert each.report.sums["tokens"] == one.report.sums["tokens"]
        assert each.norms == pytest.approx(one.norms, rel=1e-5)
        for first, second in zip(each.logprobs, one.logprobs, strict=True):
            assert np.allclose(first, second, atol=1e-5)
        for name, weight in one.weights.items():
            assert torch.allclose(each.weights[name], weight, atol=2e-5), name
        for held, total in each.held:
            assert held <= total / size * 1.15
    for part in range(2):  # weights and moments: nothing is missing, and nothing twice
        assert sum(each.held[part][0] for each in found) == found[0].held[part][1]


def test_compiled_layers_compute_what_the_others_do(model_folder: Path, tmp_path: Path) -> None:
    """With two rows of unequal length on each rank: a pass without and one with gradients are compiled, no third."""
    settings: dict[str, Any] = {"token_budget": 130}
    one = train(ALONE, model_folder, 4, 0, settings_of(**settings))
    found = on_ranks(2, tmp_path, train_compiled, model_folder, 4, settings_of(**settings, compile=True))
    for each, compiled in found:
        assert (each.gradient - one.gradient).abs().max() < 1e-6
        assert each.norms == pytest.approx(one.norms, rel=1e-4)
        assert compiled == 2


def train_compiled(ranks: Ranks, folder: Path, rows: int, settings: LearnerSettings) -> tuple[Trained, int]:
    """Also return the number of compiled graphs."""
    from torch._dynamo.utils import counters
    from torch._inductor import config

    config.compile_threads = 1  # processes of a pool would import torch first
    return train(ranks, folder, rows, 0, settings), counters["stats"]["unique_graphs"]


def train_ppo(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """One step of PPO with a critic and a reference."""
    settings = PpoSettings.model_validate({"loss": {"kl_coefficient": 0.1}, "value_optim": {"learning_rate": 1e-3}})
    learners = LearnerGroup.from_folder(folder, settings_of(), 0, has_critic=True, has_reference=True, ranks=ranks)
    rows = random_rows(5)
    rewards = {(row.key.group_id, row.key.rollout_index): float(index % 3) for index, row in enumerate(rows)}
    algorithm = Ppo(settings, UpdateSettings(optim=OPTIM, mini_batches=2))
    update = update_step(algorithm, learners, StepRows(rows, rewards), 1)
    critic, reference = learners.critic, learners.reference
    assert critic is not None and reference is not None and update.report.critic is not None
    modules = {"critic": critic._trained.tensors(), "reference": dict(reference.policy.named_parameters())}
    return {
        "loss": update.report.loss.loss,
        "kl": update.report.loss.sums["kl_reference"],
        "critic loss": update.report.critic.loss.loss,
        "norms": [step.grad_norm for step in (*update.report.optim, *update.report.critic.optim)],
        "values": critic.values(rows),
        "held": [*(bytes_of(tensors) for tensors in modules.values()), bytes_of(moments_of(critic))],
    }


def test_critic_and_reference_are_sharded_with_the_policy(model_folder: Path, tmp_path: Path) -> None:
    one = train_ppo(ALONE, model_folder)
    assert one["critic loss"] > 0
    for each in on_ranks(2, tmp_path, train_ppo, model_folder):
        for name in ("loss", "kl", "critic loss"):
            assert each[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6), name
        assert each["norms"] == pytest.approx(one["norms"], rel=1e-4)
        for first, second in zip(each["values"], one["values"], strict=True):
            assert np.allclose(first, second, atol=1e-4)
        for held, total in each["held"]:
            assert held <= total / 2 * 1.15


def step_once(learner: Learner, seed: int) -> None:
    learner.forward_backward(TrainBatch.of(random_rows(5, seed=seed)), LOSS)
    learner.optim_step(OPTIM)


def save_and_continue(ranks: Ranks, folder: Path, state: Path, is_captured: bool) -> Mapping[str, Tensor]:
    """Save after one step and take another; captured, the files are written later, beside a third step."""
    learner = Learner.from_folder(folder, settings_of(), 0, ranks)
    step_once(learner, 1)
    learner.capture() if is_captured else learner.save(state)
    step_once(learner, 2)
    continued = learner.publish(2).tensors
    if is_captured:
        writing = threading.Thread(target=learner.write_captured, args=(state,))
        writing.start()
        step_once(learner, 3)
        writing.join()
    return continued


def resume(ranks: Ranks, folder: Path, state: Path) -> tuple[int, Mapping[str, Tensor]]:
    learner = Learner.from_folder(folder, settings_of(), 1234, ranks)
    learner.load(state)
    steps = learner.steps
    step_once(learner, 2)
    return steps, learner.publish(2).tensors


@pytest.mark.parametrize(
    ("saved", "resumed", "is_captured"), [(2, 2, True), (2, 3, False), (2, 1, True), (1, 2, False)]
)
def test_a_checkpoint_resumes_on_any_number_of_ranks(
    model_folder: Path, tmp_path: Path, saved: int, resumed: int, is_captured: bool
) -> None:
    """With the same number to the bit, weights and moments included."""

    def run(size: int, name: str, work: Work, *more: object) -> Any:
        arguments = (model_folder, tmp_path / "state", *more)
        return on_ranks(size, tmp_path / name, work, *arguments)[0] if size > 1 else work(ALONE, *arguments)

    expected = run(saved, "first", save_and_continue, is_captured)
    steps, weights = run(resumed, "second", resume)
    assert steps == 1
    for name, tensor in expected.items():
        if saved == resumed:
            assert torch.equal(weights[name], tensor), name
        else:
            assert torch.allclose(weights[name], tensor, atol=2e-5), name


def load_and_export(ranks: Ranks, folder: Path, target: Path) -> dict[str, Any]:
    read = 0
    rows_of = WeightFiles.rows

    def counted(self: WeightFiles, name: str, rows: slice) -> Tensor:
        nonlocal read
        tensor = rows_of(self, name, rows)
        read += tensor.numel()
        return tensor

    WeightFiles.rows = counted
    learner = Learner.from_folder(folder, settings_of(), 0, ranks)
    WeightFiles.rows = rows_of
    step_once(learner, 1)
    learner.export(target, "bfloat16")
    fingerprint = learner.write_weights(target.parent / "all.safetensors")
    return {"read": read, "fingerprint": fingerprint, "weights": learner.publish(1).tensors}


@pytest.mark.parametrize("tied", [True, False])
def test_ranks_read_their_part_and_export_one_model_folder(tmp_path: Path, tied: bool) -> None:
    folder = write_tiny_model(tmp_path / "model", tied=tied)
    parameters = sum(math.prod(shape) for shape in map(WeightFiles.of_folder(folder).shape, weight_names(folder)))
    found = on_ranks(2, tmp_path / "ranks", load_and_export, folder, tmp_path / "exported")
    assert all(each["read"] <= parameters / 2 * 1.15 for each in found)
    weights = found[0]["weights"]
    assert found[0]["fingerprint"] == fingerprint_tensors(weights)
    whole = WeightFiles([tmp_path / "all.safetensors"])
    assert all(torch.equal(whole.rows(name, slice(None)), tensor) for name, tensor in weights.items())
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert exported.dtype == torch.bfloat16 and exported.config.architectures == ["Qwen3ForCausalLM"]
    assert ("lm_head.weight" in weights) != tied
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter, weights[name].bfloat16()), name


def weight_names(folder: Path) -> set[str]:
    return WeightFiles.of_folder(folder).names()
