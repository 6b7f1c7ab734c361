"""Measures the time of one update by shape of the model, precision, token budget, layout and device.

    python -m tests.bench.trainer.learner_update --output result.json
    python -m tests.bench.trainer.learner_update --shape qwen2.5-0.5b --device cuda --dtypes bfloat16 float32 \
        --budgets 16384 --checkpointing off on --rollouts 32 --shortest 512 --longest 1536

The default is 192 rollouts of about 213 tokens through the quickstart's searcher, as in the quickstart. Other shapes
have random weights. An update is ``forward_backward`` and ``optim_step`` in two mini-batches. Operations are 6 per
weight and token (those of the output layer: per trained token); attention and recomputation are not counted. The column
beside them is the rate of one large matrix product on the same device in the same precision.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from searchrl.errors import ConfigurationError
from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.model_folder import DTYPES
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.train_batch import TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings
from tests.bench.tables import markdown_table
from tests.fakes.train_rows import random_rows

WARM_START = Path(__file__).resolve().parents[3] / "searchrl" / "small_world" / "warm_start"
# The rows are no policy's own, so none may be masked for that: an update without a gradient does less.
LOSS = LossSettings(aggregation="token_mean", sequence_ratio_low=0.0, sequence_ratio_high=None)
UPDATE = UpdateSettings(optim=OptimSettings(learning_rate=1e-5))
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "qwen2.5-1.5b": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
}  # fmt: skip
MATRIX_SECONDS = 1.0  # products are repeated for so long, and the fastest one counts
COLUMNS = (
    "threads", "dtype", "token budget", "layout", "checkpointing", "seconds", "tokens/s", "TFLOP/s", "matrix TFLOP/s",
    "peak GiB",
)  # fmt: skip


MEASURED = ("seconds", "tokens/s", "TFLOP/s", "peak GiB")


def write_shape(folder: Path, shape: str, device: str = "cpu") -> Path:
    """Write a Qwen2 with random weights, drawn on ``device``, and return its folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=32768, tie_word_embeddings=True)
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    model.bfloat16().save_pretrained(folder)
    return folder


def matrix_tflops(device: str, dtype: str, threads: int) -> float:
    """Return the operations per second of a square matrix product, in 10^12: the practical peak of the device."""
    torch.set_num_threads(threads)
    # Large enough that the product is bound by computation, not by memory or the launch of a kernel.
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    seconds, ends = float("inf"), time.perf_counter() + MATRIX_SECONDS
    while True:
        seconds = min(seconds, timed(lambda: left @ right, device))
        if time.perf_counter() > ends:
            return 2 * size**3 / seconds / 1e12


def timed(work: Callable[[], object], device: str) -> float:
    """Return the seconds of ``work``, including kernels that are still running on the GPU when it returns."""
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def operations(learner: Learner, rows: Sequence[TrainRow]) -> float:
    """Return the number of operations of a forward and backward pass over the rows."""
    model = learner.model
    ends: list[Any] = [model.get_output_embeddings(), model.get_input_embeddings()]
    head, embeddings = (each.weight for each in ends)
    outside = sum({id(each): each.numel() for each in (head, embeddings)}.values())
    body = sum(parameter.numel() for parameter in model.parameters()) - outside
    trained = sum(row.trainable_tokens for row in rows)
    return 6.0 * (body * sum(len(row) for row in rows) + head.numel() * trained)


def measure(folder: Path, rows: list[TrainRow], settings: LearnerSettings, repeats: int) -> dict[str, object]:
    """Return the median seconds of an update, tokens and operations per second, and the GPU's peak memory."""
    learner = Learner.from_folder(folder, settings, 0)
    batch = TrainBatch.of(rows)
    update_policy(learner, batch, LOSS, UPDATE)  # warm-up, not measured
    if settings.device != "cpu":
        torch.cuda.reset_peak_memory_stats(settings.device)
    work = [timed(lambda: update_policy(learner, batch, LOSS, UPDATE), settings.device) for _ in range(repeats)]
    seconds = statistics.median(work)
    return {
        "seconds": seconds,
        "tokens/s": sum(len(row) for row in rows) / seconds,
        "TFLOP/s": operations(learner, rows) / seconds / 1e12,
        "peak GiB": 0.0 if settings.device == "cpu" else torch.cuda.max_memory_allocated(settings.device) / 2**30,
    }


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["quickstart", *SHAPES], default="quickstart")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+", default=["float32"])
    parser.add_argument("--rollouts", type=int, default=192)
    parser.add_argument("--shortest", type=int, default=140)
    parser.add_argument("--longest", type=int, default=287)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--budgets", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--layouts", choices=["padded", "packed"], nargs="+", default=["padded", "packed"])
    parser.add_argument("--checkpointing", choices=["off", "on"], nargs="+", default=["off"])
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def run(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    rows = random_rows(arguments.rollouts, shortest=arguments.shortest, longest=arguments.longest)
    rows = [replace(row, token_ids=row.token_ids + 10) for row in rows]
    results: list[dict[str, object]] = []
    for threads, dtype in itertools.product(arguments.threads, arguments.dtypes):
        peak = matrix_tflops(arguments.device, dtype, threads)
        for budget, layout, checkpointing in itertools.product(
            arguments.budgets, arguments.layouts, arguments.checkpointing
        ):
            settings = LearnerSettings(
                device=arguments.device, dtype=dtype, threads=threads, token_budget=budget, packed=layout == "packed",
                gradient_checkpointing=checkpointing == "on",
            )  # fmt: skip
            given = {"threads": threads, "dtype": dtype, "token budget": budget, "layout": layout}
            measured: dict[str, object]
            try:
                measured = measure(folder, rows, settings, arguments.repeats)
            except ConfigurationError as error:  # it does not fit into the GPU's memory
                measured = {name: str(error) for name in MEASURED}
            results.append({**given, "checkpointing": checkpointing, "matrix TFLOP/s": peak, **measured})
            if arguments.device != "cpu":
                torch.cuda.empty_cache()
    return results


def main() -> None:
    arguments = arguments_of()
    if arguments.shape == "quickstart":
        results = run(arguments, WARM_START)
    else:
        with tempfile.TemporaryDirectory() as folder:
            results = run(arguments, write_shape(Path(folder), arguments.shape))
    where = torch.cuda.get_device_name(arguments.device) if arguments.device != "cpu" else "CPU"
    markdown_table(f"{arguments.shape} on {where}, torch {torch.__version__}", COLUMNS, results)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
