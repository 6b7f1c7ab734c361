"""Measures a learner's memory over many updates, and the part that each of several gloo ranks holds.

    python -m tests.bench.trainer.learner_memory --updates 200 --ranks 1 2 4

A small Qwen3 with random weights is updated on the CPU, by one process and by FSDP2 over gloo ranks. ``held`` is what
the rank with the most holds of weights, gradients and moments; ``of 1/n`` compares it with an equal share of all.
``first`` and ``last`` are the mean resident memory of a rank's process over the first and the last 50 updates after a
warm-up: equal if nothing is left behind by an update.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ranks import ALONE, Ranks, join_ranks
from services.trainer.learner.sharding import local_part
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.policy_losses import LossSettings
from tests.bench.tables import markdown_table
from tests.fakes.train_rows import random_rows, write_tiny_model

VOCABULARY, WIDTH, LAYERS = 2000, 128, 4
WARM_UP = 0.1  # share of the updates before memory counts: allocators and caches grow to what an update needs
WINDOW = 50  # updates whose mean is compared; fewer if there are fewer in half of the measured ones
MIB = 2**20
COLUMNS = ("ranks", "held MiB", "1/n MiB", "of 1/n", "first MiB", "last MiB", "last / first")
# the rows are no policy's own, so none may be masked for that
LOSS = LossSettings(aggregation="token_mean", sequence_ratio_low=0.0, sequence_ratio_high=None)


class RankMemory(NamedTuple):
    """Bytes of one rank: of the state that it holds and of the complete one, and resident after each update."""

    held: int
    complete: int
    resident: list[int]


def write_model(folder: Path) -> Path:
    """Write the model that is updated."""
    return write_tiny_model(folder, vocabulary=VOCABULARY, width=WIDTH, layers=LAYERS)


def update(ranks: Ranks, folder: Path, updates: int) -> RankMemory:
    """Update the model so many times on one rank."""
    learner = Learner.from_folder(folder, LearnerSettings(token_budget=256), 0, ranks)
    process, resident = psutil.Process(), list[int]()
    held = complete = 0
    for index in range(updates):
        # other rows in each update, as in a run, so that their lengths and layouts differ
        learner.forward_backward(TrainBatch.of(random_rows(8, seed=index, vocabulary=VOCABULARY)), LOSS)
        if index == updates - 1:  # the moments exist since the first step, the gradients until this one
            held, complete = count_state(learner)
        learner.optim_step(OptimSettings(learning_rate=1e-5))
        resident.append(process.memory_info().rss)
    return RankMemory(held, complete, resident)


def count_state(learner: Learner) -> tuple[int, int]:
    """Bytes of weights, gradients and moments that this rank holds, and those of all ranks together."""
    module, optimizer = learner.policy, learner._trained._optimizer
    tensors: list[Tensor] = [tensor for p in module.parameters() for tensor in (p, p.grad) if tensor is not None]
    if optimizer is not None:
        kinds = optimizer.state_dict().values()
        moments = [moment for kind in kinds for each in kind.values() for moment in each.values()]
        tensors += [moment for moment in moments if moment.dim()]  # the number of steps is a scalar
    return (
        sum(local_part(tensor.detach() if isinstance(tensor, nn.Parameter) else tensor).nbytes for tensor in tensors),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def measure(folder: Path, size: int, updates: int) -> list[RankMemory]:
    """Return what each of ``size`` processes found."""
    with tempfile.TemporaryDirectory() as results:
        multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
            _run_rank, args=(size, Path(results), folder, updates), nprocs=size, join=True, start_method="spawn"
        )
        return [RankMemory(*json.loads(Path(results, str(rank)).read_text())) for rank in range(size)]


def _run_rank(rank: int, size: int, results: Path, folder: Path, updates: int) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, size) if size > 1 else ALONE
    if size > 1:
        store = dist.FileStore(str(results / "store"), size)  # pyright: ignore[reportPrivateImportUsage]
        join_ranks(ranks, store, "cpu")
    (results / str(rank)).write_text(json.dumps(update(ranks, folder, updates)))
    if size > 1:
        dist.destroy_process_group()


def compare_ends(resident: Sequence[int]) -> tuple[float, float]:
    """Mean bytes of the first and of the last updates after the warm-up."""
    measured = resident[int(len(resident) * WARM_UP) :]
    window = max(1, min(WINDOW, len(measured) // 2))
    return statistics.mean(measured[:window]), statistics.mean(measured[-window:])


def summarize(found: Sequence[RankMemory]) -> dict[str, object]:
    """One row of the table, of the rank that holds or grows most."""
    held, share = max(each.held for each in found), found[0].complete / len(found)
    first, last = max((compare_ends(each.resident) for each in found), key=lambda ends: ends[1] / ends[0])
    values = (held / MIB, share / MIB, held / share, first / MIB, last / MIB)
    return {"ranks": len(found), **dict(zip(COLUMNS[1:6], values, strict=True)), "last / first": f"{last / first:.3f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model")
        rows = [summarize(measure(model, size, arguments.updates)) for size in arguments.ranks]
    markdown_table(f"{arguments.updates} updates, torch {torch.__version__}", COLUMNS, rows)


if __name__ == "__main__":
    main()
