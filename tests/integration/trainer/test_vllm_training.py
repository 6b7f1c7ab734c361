"""Training runs whose rollouts are sampled by a real vLLM server on CPUs; trainer and server are killed meanwhile."""

import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from tests.integration.real_vllm import NEEDS_VLLM, VLLM
from tests.integration.trainer.conftest import (
    GROUPS,
    SIZE,
    Environment,
    StartTrainer,
    TrainerProcess,
)

pytestmark = [
    *NEEDS_VLLM,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
STEPS = 3
SETTINGS = {
    "steps": STEPS,
    "engine.kind": "vllm",
    "engine.server.executable": VLLM,
    "engine.server.dtype": "float32",
    "engine.server.cpu_kv_cache_gib": 1,
    "engine.server.max_num_seqs": 16,
    "engine.server.enforce_eager": "true",
    "engine.server.shutdown_seconds": 0,
}
SECONDS = 900  # of a run: it starts a server, which takes a minute on a quiet machine


def servers_of(folder: Path) -> list[psutil.Process]:
    """The vLLM processes of this model folder that run."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "serve" in arguments and str(folder) in arguments:
            found.append(process)
    return found


def end_of(trainer: TrainerProcess) -> int:
    return trainer.process.wait(SECONDS)


def trained(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "trajectories").glob("step_*.parquet")):
        rows += parquet.read_table(path).to_pylist()
    return rows


def test_grpo_of_an_adapter_continues_after_a_kill_of_the_trainer(
    services: Environment, trainers: StartTrainer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = {**SETTINGS, "learner.adapter": "{kind: lora, rank: 8}"}
    killed = trainers(folder, settings=settings, killed=("update", 2))
    assert end_of(killed) == -signal.SIGKILL, killed.log.read_text()[-4000:]
    # The server of a trainer that was killed ends by itself, and leaves its memory to the next one.
    _, alive = psutil.wait_procs(servers_of(services.model), timeout=60)
    assert not alive
    resumed = trainers(folder, resume=True)
    assert end_of(resumed) == 0, resumed.log.read_text()[-4000:]

    lines = resumed.lines()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    # Engine and learner agree on every trained token, after each push.
    assert all(line["logprob_mismatch"] < 1e-4 for line in lines)
    assert [line["policy_version"] for line in lines] == list(range(1, STEPS + 1))
    assert len({line["fingerprint"] for line in lines}) == STEPS
    rows = trained(folder)
    assert [(row["group_id"], row["rollout_index"]) for row in rows] == [
        (group_id, index) for group_id in range(STEPS * GROUPS) for index in range(SIZE)
    ]
    # The servers and the exported model have the adapter within the weights of its layers, and all else as it was.
    before, after = (load_file(model / "model.safetensors") for model in (services.model, folder / "final"))
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name].to(weight.dtype))}
    assert changed == {name for name in before if "_proj." in name}
    assert list((folder / "final").glob("**/adapter_model.safetensors"))
    # Nothing but its log is left of the engine: the weights are in the checkpoints.
    assert [path.name for path in (folder / "engine").iterdir()] == ["vllm-0.log"]
    assert not servers_of(services.model)


@pytest.fixture(scope="module")
def llama(services: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights and the tokenizer and profile of the small world's searcher."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    shutil.copytree(services.model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "manifest*"))
    vocabulary = AutoConfig.from_pretrained(services.model).vocab_size
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, pad_token_id=0, **shape, **heads)).save_pretrained(folder)
    return folder


def test_ppo_on_two_ranks_goes_on_after_its_server_was_killed(
    services: Environment, llama: Path, trainers: StartTrainer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ppo = {"model": llama, "algorithm": "{kind: ppo}", "learner.ranks": 2, "engine.recovery_seconds": SECONDS}
    trainer = trainers(folder, settings={**SETTINGS, **ppo})
    trainer.wait_for_step(1)
    (server,) = servers_of(llama)
    server.kill()
    assert end_of(trainer) == 0, trainer.log.read_text()[-4000:]

    lines = trainer.lines()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["logprob_mismatch"] < 1e-4 for line in lines)
    assert len({line["fingerprint"] for line in lines}) == STEPS
    visits = [(row["group_id"], row["rollout_index"]) for row in trained(folder)]
    assert len(visits) == len(set(visits)) == STEPS * GROUPS * SIZE
    assert not servers_of(llama)
