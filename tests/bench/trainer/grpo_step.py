"""Times one GRPO update beside TRL's on the same model, rows and settings: loss, backward, clipping, AdamW.

    pip install --no-deps --target /tmp/trl trl==1.16.0 datasets dill multiprocess xxhash pandas
    PYTHONPATH=/tmp/trl:. python -m tests.bench.trainer.grpo_step --threads 1 2

A Qwen2 of three layers, width 64 and 144,192 parameters with 32 rows of 16 + 48 tokens, eight per group. Both sides
track the entropy and have no KL term; generation is left out. The updates take turns, so that both see the same
machine, and the median counts. Both losses are printed before the first update: they must agree.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import RowKey, TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings
from tests.bench.tables import markdown_table
from tests.fakes.tiny_llm import write_byte_tokenizer

ROWS, PROMPT, COMPLETION, GROUP = 32, 16, 48, 8
LEARNING_RATE = 1e-6
LOSS = LossSettings(aggregation="token_mean", clip_low=0.2, clip_high=0.2)
UPDATE = UpdateSettings(
    optim=OptimSettings(learning_rate=LEARNING_RATE, max_grad_norm=1.0, weight_decay=0.0), mini_batches=1
)
COLUMNS = ("threads", "milliseconds", "TRL, milliseconds", "ratio", "loss", "TRL, loss")


def write_model(folder: Path) -> Path:
    """Write the model with a byte-level tokenizer, which TRL asks for."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=256, eos_token_id=258,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


def draw_step(learner: Learner) -> tuple[list[TrainRow], dict[str, Any]]:
    """Draw rows with log-probabilities near the model's, in the form of both sides."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (ROWS, PROMPT + COMPLETION))
    advantages = rng.normal(size=ROWS).astype(np.float32)
    mask = np.arange(PROMPT + COMPLETION) >= PROMPT
    rows = [
        TrainRow(
            RowKey(number // GROUP, number % GROUP), ids[number], mask=mask,
            behavior_logprobs=np.zeros(len(mask), np.float32), versions=np.where(mask, 0, -1),
            kinds=np.zeros(len(mask), np.int64),
            advantages=np.where(mask, advantages[number], 0).astype(np.float32),
        )
        for number in range(ROWS)
    ]  # fmt: skip
    old = np.stack(learner.logprobs(rows)) + 0.1 * rng.normal(size=ids.shape)
    for row, logprobs in zip(rows, old, strict=True):
        row.behavior_logprobs[mask] = logprobs[mask]
    completions = torch.ones(ROWS, COMPLETION, dtype=torch.long)
    inputs = {
        "prompt_ids": torch.tensor(ids[:, :PROMPT]),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.long),
        "completion_ids": torch.tensor(ids[:, PROMPT:]),
        "completion_mask": completions,
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": torch.tensor(old[:, PROMPT:], dtype=torch.float32),
        "num_items_in_batch": completions.sum(),
    }
    return rows, inputs


def build_trl(folder: Path, threads: int) -> tuple[Any, torch.optim.Optimizer]:
    """Return TRL's trainer of the model, and its optimizer."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as output:
        options = GRPOConfig(
            output_dir=output, use_cpu=True, bf16=False, report_to=[], num_generations=GROUP, loss_type="dapo",
            per_device_train_batch_size=ROWS, max_completion_length=COMPLETION, epsilon=0.2, beta=0.0,
            model_init_kwargs={"dtype": "float32"}, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=str(folder), args=options, reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_dict({"prompt": ["a"] * ROWS}),
        )  # fmt: skip
    torch.set_num_threads(threads)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer, torch.optim.AdamW(trainer.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)


def measure(folder: Path, threads: int, repeats: int) -> dict[str, object]:
    learner = Learner.from_folder(folder, LearnerSettings(threads=threads, token_budget=ROWS * 64, packed=False), 0)
    rows, inputs = draw_step(learner)
    batch = TrainBatch.of(rows)
    trainer, optimizer = build_trl(folder, threads)

    def update() -> float:
        return update_policy(learner, batch, LOSS, UPDATE).loss.loss

    def update_of_trl() -> float:
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    losses = [update(), update_of_trl()]
    seconds: dict[Callable[[], float], list[float]] = {update: [], update_of_trl: []}
    for _ in range(repeats):
        for work, taken in seconds.items():
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    ours, trl = (1e3 * statistics.median(taken) for taken in seconds.values())
    return dict(zip(COLUMNS, (threads, ours, trl, trl / ours, *losses), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = write_model(Path(name))
        results = [measure(folder, threads, arguments.repeats) for threads in arguments.threads]
    markdown_table(f"torch {torch.__version__}, medians of {arguments.repeats}", COLUMNS, results)


if __name__ == "__main__":
    main()
