"""Builds tiny models and random training rows, and trains on them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import RowKey, TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings

if TYPE_CHECKING:
    from services.trainer.learner.learner import Learner

VOCABULARY = 40


def write_tiny_model(
    folder: Path, seed: int = 0, vocabulary: int = VOCABULARY, width: int = 32, layers: int = 2, tied: bool = True
) -> Path:
    """Write a small Qwen3 with random weights and no tokenizer, and return its folder."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=width // 2, intermediate_size=width * 3 // 2, max_position_embeddings=256,
        tie_word_embeddings=tied,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def random_rows(
    count: int,
    seed: int = 0,
    shortest: int = 8,
    longest: int = 60,
    temperature: float = 1.0,
    vocabulary: int = VOCABULARY,
) -> list[TrainRow]:
    """Return rows of unequal length, two per group, with several actions each and advantages of both signs."""
    rng = np.random.default_rng(seed)
    rows: list[TrainRow] = []
    # About those of an untrained model, for which all tokens are equally likely: rows of another policy are masked.
    mean = -3.6 - math.log(vocabulary / VOCABULARY)
    for index in range(count):
        length = int(rng.integers(shortest, longest))
        mask = np.repeat(rng.random(length // 4 + 1) < 0.5, 4)[:length]
        mask[:2], mask[-1] = False, True
        rows.append(
            TrainRow(
                key=RowKey(index // 2, index % 2),
                token_ids=rng.integers(0, vocabulary, length),
                mask=mask,
                behavior_logprobs=np.where(mask, rng.normal(mean, 0.2, length), 0).astype(np.float32),
                versions=np.where(mask, 0, -1),
                kinds=np.zeros(length, dtype=np.int64),
                advantages=np.where(mask, rng.choice([-1.0, 0.5, 2.0]), 0).astype(np.float32),
                temperature=temperature,
            )
        )
    return rows


def move_weights(learner: "Learner", steps: int, rate: float, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Return the change of all weights, as one vector, after some steps on one batch."""
    before = learner.publish(0).tensors
    for _ in range(steps):
        learner.forward_backward(TrainBatch.of(random_rows(8, vocabulary=vocabulary)), LossSettings())
        learner.optim_step(OptimSettings(learning_rate=rate))
    after = learner.publish(1).tensors
    return torch.cat([(after[name] - tensor).reshape(-1) for name, tensor in before.items()])
