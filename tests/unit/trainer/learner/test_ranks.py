"""Several ranks train like one process, on real gloo groups and as Ray actors.

Gradients sum to that of one process for any number of rows, ranks have equally many micro-batches, and a rank without
trainable tokens takes part in every reduction, for otherwise the others would wait forever.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from searchrl.errors import Unavailable
from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.learner.batching import pack_for_ranks
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ray_learner import sum_gradients
from services.trainer.learner.train_batch import TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.train_rows import random_rows

SETTINGS = LearnerSettings(token_budget=100)  # two rows of average length: seven rows need several micro-batches
LOSS = LossSettings(aggregation="seq_mean_token_mean")
PRELOADED = ["torch", "transformers.models.qwen3.modeling_qwen3", "services.trainer.learner.learner"]
Work = Callable[[int, int, Path], object]


def _run_rank(rank: int, ranks: int, folder: Path, results: Path, work: Work) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(results / "store"), ranks)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    torch.save(work(rank, ranks, folder), results / f"{rank}.pt")
    dist.destroy_process_group()


def on_ranks(ranks: int, folder: Path, results: Path, work: Work) -> list:
    """Run ``work`` in ``ranks`` processes joined by gloo, and return what each returned."""
    # A fork server without threads imports the heavy modules once; ranks are forked from it.
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
        _run_rank, args=(ranks, folder, results, work), nprocs=ranks, join=True, start_method="forkserver"
    )
    return [torch.load(results / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def gradient(learner: Learner) -> torch.Tensor:
    parameters = list(learner.model.parameters())
    return torch.cat([p.grad.reshape(-1) if p.grad is not None else torch.zeros(p.numel()) for p in parameters])


def share_of_gradient(rows: list[TrainRow], rank: int, ranks: int, folder: Path) -> tuple[torch.Tensor, int]:
    """Run one rank's share, reduce the gradients, and return their sum and the number of micro-batches."""
    learner = Learner.from_folder(folder, SETTINGS, 0)
    batch = TrainBatch.of(rows)
    column = pack_for_ranks(batch.rows, ranks, SETTINGS.token_budget)[rank]
    learner.forward_backward(batch.with_rows(()), LOSS, column)
    sum_gradients([p for p in learner.model.parameters() if p.grad is not None])
    return gradient(learner), len(column)


def seven_rows(rank: int, ranks: int, folder: Path) -> tuple[torch.Tensor, int]:
    return share_of_gradient(random_rows(7), rank, ranks, folder)


def one_row(rank: int, ranks: int, folder: Path) -> tuple[torch.Tensor, int]:
    return share_of_gradient(random_rows(1), rank, ranks, folder)


def silent_rank(rank: int, ranks: int, folder: Path) -> tuple[torch.Tensor, int]:
    """Train on two ranks, of which rank 1 has rows without any trainable token."""
    learner = Learner.from_folder(folder, SETTINGS, 0)
    rows = random_rows(4)
    silent = [replace(row, mask=np.zeros(len(row), dtype=bool)) for row in rows[2:]]
    batch = TrainBatch.of([*rows[:2], *silent])
    share = tuple(batch.rows[:2] if rank == 0 else batch.rows[2:])
    learner.forward_backward(batch.with_rows(()), LOSS, [share])
    report = learner._trained.optim_step(OptimSettings(max_grad_norm=1e9))
    return torch.tensor(report.grad_norm), report.step


def on_one_process(rows: list[TrainRow], folder: Path) -> torch.Tensor:
    learner = Learner.from_folder(folder, SETTINGS, 0)
    learner.forward_backward(TrainBatch.of(rows), LOSS)
    return gradient(learner)


def test_a_rank_waits_in_a_collective_as_long_as_a_step_may_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from services.trainer.learner import ray_learner  # Ray takes seconds to import, in every rank of the other tests

    groups: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_args, **options: groups.append(options))
    monkeypatch.setattr(Learner, "from_folder", lambda *_args: None)
    rank = ray_learner.LearnerRank(0, 1)
    rank.start(rank.open_store(), tmp_path, SETTINGS, seed=0)
    assert [group["timeout"].total_seconds() for group in groups] == [ray_learner.STEP_SECONDS]


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        ("ActorDiedError", (), "a learner rank died: "),
        ("ActorUnavailableError", ("connection reset", None), "the connection to a learner rank failed: .*reset"),
        ("ObjectLostError", ("ab" * 28, None, ""), "the connection to a learner rank failed: Failed to retrieve"),
        ("GetTimeoutError", (), "a learner rank did not answer within 3 s"),
    ],
)
def test_a_failure_between_the_trainer_and_a_rank_makes_the_learner_unavailable(
    monkeypatch: pytest.MonkeyPatch, kind: str, arguments: tuple[object, ...], sentence: str
) -> None:
    import ray.exceptions

    from services.trainer.learner import ray_learner

    def fail(_calls: list[object], timeout: float) -> None:
        raise getattr(ray.exceptions, kind)(*arguments)

    monkeypatch.setattr(ray_learner.ray, "get", fail)
    with pytest.raises(Unavailable, match=sentence):
        ray_learner.collect([], seconds=3)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "rows"), [(seven_rows, 7), (one_row, 1)])
def test_three_ranks_sum_to_the_gradient_of_one_process(model_folder, tmp_path, work, rows) -> None:
    """Seven rows do not divide by three; a single row leaves two ranks with padding only."""
    expected = on_one_process(random_rows(rows), model_folder)
    results = on_ranks(3, model_folder, tmp_path, work)
    assert len({count for _, count in results}) == 1
    for found, _ in results:
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_a_rank_without_trainable_tokens_takes_part_and_adds_nothing(model_folder: Path, tmp_path: Path) -> None:
    expected = on_one_process(random_rows(4)[:2], model_folder)
    results = on_ranks(2, model_folder, tmp_path, silent_rank_with_reduction)
    for norm, step in results:
        assert float(norm) == pytest.approx(float(expected.norm()), rel=1e-5)
        assert step == 1


def silent_rank_with_reduction(rank: int, ranks: int, folder: Path) -> tuple[torch.Tensor, int]:
    original = Learner.from_folder
    patched = classmethod(lambda cls, f, s, seed: original.__func__(cls, f, s, seed, sum_gradients))
    Learner.from_folder = patched  # pyright: ignore[reportAttributeAccessIssue]
    return silent_rank(rank, ranks, folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ray_actors_train_like_one_process_and_exchange_checkpoints_with_it(model_folder, tmp_path) -> None:
    ray = pytest.importorskip("ray")
    from services.trainer.learner.ray_learner import RayLearner

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        actors = RayLearner.start(model_folder, SETTINGS, 0, ranks=2)
        single = Learner.from_folder(model_folder, SETTINGS, 0)
        update = UpdateSettings(optim=OptimSettings(learning_rate=1e-3))
        assert actors.publish(0).fingerprint == single.publish(0).fingerprint
        reports = [update_policy(each, TrainBatch.of(random_rows(7)), LOSS, update) for each in (actors, single)]
        assert reports[0].loss.loss == pytest.approx(reports[1].loss.loss, abs=1e-6)
        assert reports[0].loss.sums["tokens"] == reports[1].loss.sums["tokens"]
        for first, second in zip(reports[0].optim, reports[1].optim, strict=True):
            assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-5)
        rows = random_rows(5, seed=4)
        for one, other in zip(actors.logprobs(rows), single.logprobs(rows), strict=True):
            assert np.allclose(one, other, atol=1e-3)

        actors.save(tmp_path / "state")
        single.load(tmp_path / "state")
        assert single.publish(1).fingerprint == actors.publish(1).fingerprint
        single.save(tmp_path / "from-single")
        actors.load(tmp_path / "from-single")
        assert actors.steps == 2

        update_policy(actors, TrainBatch.of(random_rows(1)), LOSS, update)  # fewer rows than ranks
        assert actors.publish(2).version == 2  # would raise if the replicas differed
        actors.close()
    finally:
        ray.shutdown()
