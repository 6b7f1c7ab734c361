"""The estimates of memory and disk against what is actually allocated and written."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from searchrl.errors import ConfigurationError
from searchrl.platform import capacity
from searchrl.platform.capacity import main_memory
from searchrl.small_world.files import WARM_START_FOLDER
from services.trainer.engines.kv_pool import KvPool, most_slot_bytes
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.preflight.sizes import RunSizes, count_parameters, estimate_sizes
from tests.fakes.small_run import run_config


def state_of(sizes: RunSizes) -> int:
    return sizes.weights + sizes.gradients + sizes.moments + sizes.reference


@pytest.mark.parametrize("context", [1, 63, 64, 100, 512])
def test_a_pool_that_grows_never_takes_more_than_estimated(context: int) -> None:
    config = AutoConfig.from_pretrained(WARM_START_FOLDER)
    most, taken = 3 * most_slot_bytes(config, context), list[int]()
    for step in (1, 7, 64, context):
        pool = KvPool(config, slots=3, context_tokens=context)
        for start in range(0, context, step):
            before = pool._data
            pool.window(
                0, torch.tensor([0, start, start]), step + 1
            )  # the shorter rows' padding ends behind the context
            taken.append(pool._data.nbytes + (before.nbytes if before is not pool._data else 0))
    assert max(taken) == most if context > 64 else max(taken) <= most


def test_a_checkpoint_is_as_large_as_estimated(tmp_path: Path) -> None:
    learner = Learner.from_folder(WARM_START_FOLDER, LearnerSettings(), seed=0)
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optim_step(OptimSettings())
    learner.save(tmp_path / "checkpoint")
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir())
    parameters = count_parameters(WARM_START_FOLDER)
    assert parameters == sum(parameter.numel() for parameter in learner.model.parameters())
    config = run_config(tmp_path / "run", checkpoints__keep=1)
    # two checkpoints of 12 bytes a parameter, and the final model of 4
    assert estimate_sizes(config, parameters, 512).disk == parameters * 28
    assert parameters * 12 < written < parameters * 12 * 1.05


def test_the_copy_of_a_state_in_writing_is_as_large_as_estimated(tmp_path: Path) -> None:
    learner = Learner.from_folder(WARM_START_FOLDER, LearnerSettings(), seed=0)
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optim_step(OptimSettings())
    learner.capture()
    state = learner._trained._captured
    assert state is not None
    moments = [moment for each in state.optimizer.values() for moments in each.values() for moment in moments.values()]
    held = sum(tensor.nbytes for tensor in (*state.tensors.values(), *(part for part in moments if part.dim())))
    parameters = count_parameters(WARM_START_FOLDER)
    assert estimate_sizes(run_config(tmp_path), parameters, 512).captured == held == 12 * parameters
    shared = estimate_sizes(run_config(tmp_path, learner={"ranks": 4}), parameters, 512)
    assert shared.captured == 3 * parameters  # of each rank
    assert estimate_sizes(run_config(tmp_path, checkpoints__background=False), parameters, 512).captured == 0


def test_the_estimate_includes_a_critic_and_a_reference_policy(tmp_path: Path) -> None:
    grpo = estimate_sizes(run_config(tmp_path), 1000, 512)
    ppo = run_config(
        tmp_path, algorithm={"kind": "ppo", "loss": {"kl_coefficient": 0.1}}, rollouts__group_size=1, preset=None
    )
    # weights, gradients and two moments of 4 bytes each; the critic the same; the reference only weights
    assert (state_of(grpo), state_of(estimate_sizes(ppo, 1000, 512))) == (16_000, 36_000)


def test_ranks_share_the_state_and_gather_layers(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(WARM_START_FOLDER)
    parameters = count_parameters(WARM_START_FOLDER)
    alone = estimate_sizes(run_config(tmp_path / "one"), parameters, 512)
    four = estimate_sizes(run_config(tmp_path / "four", learner={"ranks": 4}), parameters, 512)
    rounded = estimate_sizes(run_config(tmp_path / "rounded", learner={"dtype": "bfloat16"}), parameters, 512)
    assert (state_of(alone), alone.gathered) == (parameters * 16, 0)
    # the tied embeddings, and two of the four layers, in the dtype of the passes
    embeddings = config.vocab_size * config.hidden_size
    complete = embeddings + 2 * ((parameters - embeddings) // 4)
    assert (state_of(four), four.gathered) == (parameters * 4, 4 * complete)
    assert (state_of(rounded), rounded.gathered) == (parameters * 16, 2 * complete)
    assert rounded.activations < alone.activations
    settings = {"device": "cuda", "offload": "cpu", "ranks": 2}
    offloaded = estimate_sizes(run_config(tmp_path / "offloaded", learner=settings), parameters, 512)
    assert offloaded.offloaded == parameters * 8
    passes = offloaded.activations + max(offloaded.backward, offloaded.logits)
    assert offloaded.learner == offloaded.gathered + passes


def test_an_adapter_needs_moments_for_itself_alone(tmp_path: Path) -> None:
    settings = LearnerSettings.model_validate({"adapter": {"kind": "lora", "rank": 4, "targets": ["q_proj"]}})
    config = AutoConfig.from_pretrained(WARM_START_FOLDER)
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    adapter = config.num_hidden_layers * 4 * (config.hidden_size + heads)
    kl = {"kl_coefficient": 0.1}
    run = run_config(tmp_path, learner=settings.model_dump(mode="json"), algorithm__loss=kl, checkpoints__keep=1)
    parameters = count_parameters(WARM_START_FOLDER)
    sizes = estimate_sizes(run, parameters, 512)
    # the reference is the policy without its adapter and takes nothing
    assert state_of(sizes) == 16 * adapter + 4 * parameters
    assert sizes.disk == 2 * 12 * adapter + 4 * parameters
    # servers get two copies of the merged weights, or of the adapter alone
    servers = VllmEngineSettings.model_validate({"weight_transfer": {"backend": "lora_adapter"}})
    alone = estimate_sizes(run.model_copy(update={"engine": servers}), parameters, 512)
    assert (sizes.push, alone.push) == (8 * parameters, 8 * adapter)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(ConfigurationError, match=r"one\.safetensors is missing"):
        count_parameters(tmp_path)


def test_the_limit_of_a_container_counts_as_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "CGROUP", tmp_path)
    whole = main_memory()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert main_memory() == (1_000_000, 600_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory().total == whole.total


def test_a_step_on_a_gpu_needs_temporaries_which_count_if_they_exceed_the_passes(tmp_path: Path) -> None:
    def estimate(**settings: object) -> RunSizes:
        return estimate_sizes(run_config(tmp_path / "run", **settings), 10**9, 512)

    on_gpu = {"learner__device": "cuda", "learner__token_budget": 16}
    on_cpu = estimate(learner__token_budget=16).stepping
    assert on_cpu < 10**6  # gradients of the embeddings alone
    offloaded = estimate(**on_gpu, learner__offload="cpu")  # the optimizer then runs on the CPU
    assert offloaded.stepping - offloaded.gathered < 10**6
    assert estimate(**on_gpu).stepping == 8 * 10**9
    assert estimate(**on_gpu).learner == 24 * 10**9
    assert estimate(**on_gpu, learner__ranks=2).stepping == 4 * 10**9
    passes = estimate(**on_gpu | {"learner__token_budget": 1 << 26})
    during = passes.activations + max(passes.backward, passes.logits)
    assert passes.learner == state_of(passes) + passes.gathered + during > 24 * 10**9


def test_muon_keeps_one_moment_of_matrices_and_adamw_two_of_the_rest(tmp_path: Path) -> None:
    learner = Learner.from_folder(WARM_START_FOLDER, LearnerSettings(), seed=0)
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optim_step(OptimSettings(kind="muon"))
    learner.save(tmp_path / "checkpoint")
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir())
    parameters = count_parameters(WARM_START_FOLDER)
    moments = estimate_sizes(run_config(tmp_path / "muon", update__optim__kind="muon"), parameters, 512).moments
    # most parameters of the small searcher are in matrices between embeddings and head
    assert 4 * parameters < moments < 6 * parameters
    assert parameters * 4 + moments < written < (parameters * 4 + moments) * 1.05
    # the critic's optimizer is another setting
    kinds = {"update__optim__kind": "muon", "algorithm": {"kind": "ppo", "value_optim": {"kind": "adamw"}}}
    ppo = estimate_sizes(run_config(tmp_path / "ppo", **kinds, rollouts__group_size=1, preset=None), parameters, 512)
    assert ppo.moments == moments + 8 * parameters


def test_muon_on_an_adapter_keeps_one_moment(tmp_path: Path) -> None:
    learner = {"adapter": {"kind": "lora", "rank": 4}}
    parameters = count_parameters(WARM_START_FOLDER)
    adamw, muon = (
        estimate_sizes(run_config(tmp_path / kind, learner=learner, update__optim__kind=kind), parameters, 512)
        for kind in ("adamw", "muon")
    )
    assert 2 * muon.moments == adamw.moments
