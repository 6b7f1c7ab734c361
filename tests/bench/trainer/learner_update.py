"""How long does one update of the quickstart's searcher take, by threads, token budget and layout?

    python -m tests.bench.trainer.learner_update --output result.json

192 rollouts of about 213 tokens, as in the quickstart, through ``forward_backward`` and ``optim_step`` in two
mini-batches. ``gflops`` counts 6 operations per parameter and token; beside it stands what one large matrix product
reaches with the same threads.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from services.trainer.algorithms.settings import LossSettings, OptimSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.policy_update import UpdateSettings, update_policy
from services.trainer.learner.settings import LearnerSettings
from services.trainer.learner.train_batch import TrainBatch, TrainRow
from tests.fakes.train_rows import random_rows

WARM_START = Path(__file__).resolve().parents[3] / "searchrl" / "small_world" / "warm_start"
UPDATE = UpdateSettings(loss=LossSettings(aggregation="token_mean"), optim=OptimSettings(learning_rate=1e-5))


def matrix_gflops(threads: int, size: int = 1024) -> float:
    """Operations per second of a square matrix product, in 10^9."""
    torch.set_num_threads(threads)
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = min(timed(lambda: left @ right) for _ in range(20))
    return 2 * size**3 / seconds / 1e9


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(rows: list[TrainRow], settings: LearnerSettings, repeats: int) -> dict[str, float]:
    """Median seconds of an update, tokens per second and operations per second."""
    learner = Learner.from_folder(WARM_START, settings, 0)
    batch = TrainBatch.of(rows)
    update_policy(learner, batch, UPDATE)
    seconds = statistics.median(timed(lambda: update_policy(learner, batch, UPDATE)) for _ in range(repeats))
    tokens = sum(len(row) for row in rows)
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "gflops": 6 * parameters * tokens / seconds / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--budgets", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--layouts", choices=["padded", "packed"], nargs="+", default=["padded", "packed"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = [
        replace(row, token_ids=row.token_ids + 10) for row in random_rows(arguments.rollouts, shortest=140, longest=287)
    ]
    results: list[dict[str, object]] = []
    for threads in arguments.threads:
        peak = matrix_gflops(threads)
        for budget in arguments.budgets:
            for layout in arguments.layouts:
                settings = LearnerSettings(threads=threads, token_budget=budget, packed=layout == "packed")
                shape: dict[str, object] = {"threads": threads, "token_budget": budget, "layout": layout, "peak": peak}
                results.append(shape | measure(rows, settings, arguments.repeats))
    table = Table("threads", "token budget", "layout", "seconds", "tokens/s", "GFLOP/s", "matrix GFLOP/s")
    for each in results:
        table.add_row(
            str(each["threads"]), str(each["token_budget"]), str(each["layout"]), f"{each['seconds']:.2f}",
            f"{each['tokens_per_second']:.0f}", f"{each['gflops']:.0f}", f"{each['peak']:.0f}",
        )  # fmt: skip
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
