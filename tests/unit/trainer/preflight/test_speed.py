"""The time of a run is counted from the speed of one layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from searchrl.errors import ConfigurationError
from searchrl.platform.capacity import Memory
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.preflight import speed
from services.trainer.preflight.plan import describe_run
from services.trainer.preflight.sizes import estimate_sizes
from services.trainer.preflight.speed import LayerSpeed, StepTime, describe_time, estimate_step, measure_speed
from tests.fakes.small_run import run_config

LAYER = LayerSpeed(train=3e-6, sample=1e-6, head=1.0)
SIZES = {"groups_per_step": 2, "group_size": 4}  # of 8 rollouts of 500 tokens through 4 layers and a head: 20,000


def test_a_step_is_its_tokens_times_its_passes(tmp_path: Path) -> None:
    def step(**settings: object) -> StepTime:
        return estimate_step(run_config(tmp_path, rollouts=SIZES, **settings), LAYER, 4, 500)

    assert step() == pytest.approx((0.02, 0.06, 0.08))
    assert step(learner__gradient_checkpointing=True).update == pytest.approx(0.08)  # one more forward pass
    assert step(learner__ranks=2).update == pytest.approx(0.03)
    assert step(update__epochs=2).update == pytest.approx(0.12)
    assert step(algorithm__loss={"kl_coefficient": 0.1}).update == pytest.approx(0.08)  # the reference scores
    # the critic trains as the policy does, and gives values before
    assert step(algorithm={"kind": "ppo", "loss": {"kl_coefficient": 0.1}}).update == pytest.approx(0.16)
    stale = step(rollouts__max_staleness=1, algorithm__loss={"old_policy": "proximal"})
    assert stale == pytest.approx((0.02, 0.08, 0.08))  # sampled meanwhile; the old policy scores


def test_the_estimate_is_told_in_units_that_people_use() -> None:
    text = describe_time(StepTime(0.25, 3.0, 3.25), 4000, 512)
    assert text.startswith("at most about 3.2 s a step (sampling 0.25 s, update 3 s), 3.6 h for 4000 steps: every")
    assert "5 days for" in describe_time(StepTime(60, 380, 440), 1000, 512)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=2, pad_token_id=40),
        LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2),
        Qwen3Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_one_layer_of_a_model_is_timed(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[torch.nn.Module] = []
    build = speed._build_layer

    def keep(*arguments: Any) -> tuple[Any, int]:
        layer, parameters = build(*arguments)
        built.append(layer)
        return layer, parameters

    monkeypatch.setattr(speed, "_build_layer", keep)
    found = measure_speed(run_config(tmp_path, rollouts=SIZES), config, 64)
    assert found.train > 0 and found.sample > 0
    complete = AutoModelForCausalLM.from_config(config)
    names = {name for name, _ in built[0].named_parameters()} - {"lm_head.weight"}
    assert names < {name for name, _ in complete.named_parameters()}
    assert {name for name in names if ".0." in name} and not {name for name in names if ".1." in name}


def test_a_device_that_is_missing_or_a_layer_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Qwen3Config(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="device cuda was requested"):
            measure_speed(run_config(tmp_path, learner__device="cuda"), config, 64)
    monkeypatch.setattr(speed, "main_memory", lambda: Memory(2**30, 2**10))
    with pytest.raises(ValueError, match="not enough memory for one layer"):
        measure_speed(run_config(tmp_path), config, 64)


def test_what_servers_sample_is_not_estimated(tmp_path: Path) -> None:
    config = run_config(tmp_path).model_copy(update={"engine": VllmEngineSettings()})
    model = Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2
    )
    step = estimate_step(config, measure_speed(config, model, 64), 2, 64)
    assert step.sampling == 0 and step.total == step.update > 0
    assert "(sampling by servers not included, update" in describe_time(step, 5, 64)
    table = describe_run(config, estimate_sizes(config, 1000, 64), 1000, 64, questions=8)
    assert "KV cache" in table and "engine.slots" not in table
