"""The estimated memory of an update against the most that torch allocates, for models of three families and sizes."""

import gc
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from torch.profiler import ProfilerActivity, profile

from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.preflight.sizes import count_parameters, estimate_sizes
from tests.fakes.small_run import run_config
from tests.fakes.train_rows import random_rows

# Heads are wider than the hidden size, as wide, and of one key head each; the intermediate size is 2.5, 5.5 and 2 times
# the hidden size. Without the terms of either, one of the three would be wrong.
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 32, "intermediate_size": 160, "tie_word_embeddings": True},
    "Qwen2": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1,
              "intermediate_size": 704, "tie_word_embeddings": True},
    "Llama": {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 6,
              "intermediate_size": 384, "tie_word_embeddings": False},
}  # fmt: skip
TOKENS = 256
LOSS = LossSettings(aggregation="token_mean", sequence_ratio_low=0.0, sequence_ratio_high=None)
FEW, MANY = 200, 4000  # entries of the vocabulary: activations are most of the memory, or logits


def write_model(folder: Path, family: str, vocabulary: int) -> Path:
    config = getattr(transformers, f"{family}Config")(**SHAPES[family], vocab_size=vocabulary)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return folder


def trained_rows(vocabulary: int) -> list[TrainRow]:
    """Rows of two micro-batches, so that gradients exist during the second, and every token is the policy's."""
    rows: list[TrainRow] = []
    for row in random_rows(2 * TOKENS // 64, shortest=63, longest=65, vocabulary=vocabulary):
        mask = np.arange(len(row)) > 0
        logprobs = np.where(mask, -np.log(vocabulary), 0).astype(np.float32)
        ones = mask.astype(np.float32)
        rows.append(replace(row, mask=mask, behavior_logprobs=logprobs, versions=mask - 1, advantages=ones))
    return rows


def measure_peak(folder: Path, rows: list[TrainRow], learner: dict[str, Any], optim: dict[str, Any]) -> int:
    gc.collect()  # models of earlier tests would be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trained = Learner.from_folder(folder, LearnerSettings.model_validate(learner), 0)
        for _ in range(2):  # the moments exist from the first step on
            trained.forward_backward(TrainBatch.of(rows), LOSS)
            trained.optim_step(OptimSettings.model_validate(optim))
    return find_peak(recorded)


def find_peak(recorded: profile) -> int:
    """The most that torch had allocated at once, from its record of every allocation (positive) and release."""
    results: Any = recorded.profiler
    events = results.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


CHECKPOINTING = {"gradient_checkpointing": True}
LORA = {"adapter": {"kind": "lora"}}


@pytest.mark.parametrize(
    ("family", "vocabulary", "learner", "optim"),
    [
        *((family, FEW, learner, {}) for family in SHAPES for learner in ({}, CHECKPOINTING)),
        ("Qwen3", MANY, {}, {}),
        ("Qwen3", FEW, {}, {"kind": "muon"}),
        ("Qwen3", FEW, {"packed": True}, {}),
        ("Qwen2", FEW, {"dtype": "bfloat16"}, {}),
        ("Qwen2", FEW, LORA, {}),
        ("Qwen3", MANY, {"track_entropy": False}, {}),
        ("Qwen3", MANY, {"logit_budget": MANY * 64}, {}),  # four parts
    ],
    ids=str,
)
def test_the_peak_of_an_update_is_as_estimated(
    tmp_path: Path, family: str, vocabulary: int, learner: dict[str, Any], optim: dict[str, Any]
) -> None:
    folder, learner = write_model(tmp_path / "model", family, vocabulary), {"token_budget": TOKENS, **learner}
    peak = measure_peak(folder, trained_rows(vocabulary), learner, optim)
    config = run_config(tmp_path / "run", model=str(folder), learner=learner, update__optim=optim)
    estimated = estimate_sizes(config, count_parameters(folder), 64).learner
    # never too little, and not so much more that a run is refused that would fit
    assert 1 <= estimated / peak < 1.15
