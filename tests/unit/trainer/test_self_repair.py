"""Runs that diverge or collapse return to a checkpoint from before, with a lower learning rate, a bounded number of
times; a process that is killed right after that does not start over."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from searchrl.domain.answer import Verdict
from services.trainer.algorithms import grpo
from services.trainer.engines import torch_engine
from services.trainer.learner.reports import PublishedWeights
from services.trainer.learner.trained_model import TrainingDiverged
from services.trainer.run_checkpoints import RunCheckpoints
from tests.fakes.small_run import SmallRun
from tests.fakes.small_world_services import SmallWorldGenerator

RATE = 2e-3
BAD_UPDATES = (3, 4)
SYNCHRONOUS: dict[str, Any] = {"update": {"mini_batches": 2, "optim": {"max_skipped_in_a_row": 4}}}
ASYNCHRONOUS: dict[str, Any] = {
    "update": {"mini_batches": 1, "optim": {"max_skipped_in_a_row": 2}},
    "rollouts__max_staleness": 1,
}
KEEP_TRAJECTORIES = {"trackers": [], "trajectories_every": 1}


class Killed(Exception):
    """Ends a process in the middle of a rollback."""


def poison(monkeypatch: pytest.MonkeyPatch, updates: Iterable[int]) -> None:
    """Make the gradients of these updates of the process NaN, counted from 1."""
    original, bad = grpo.group_rows, set(updates)
    count = 0

    def rows(groups: Any, kind: Any, scale: float, *rest: Any) -> Any:
        nonlocal count
        count += 1
        return original(groups, kind, float("nan") if count in bad else scale, *rest)

    monkeypatch.setattr(grpo, "group_rows", rows)


def record_pushes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    pushes: list[tuple[int, str]] = []

    class RecordingEngine(torch_engine.TorchEngine):
        async def load_weights(self, weights: PublishedWeights) -> None:
            await super().load_weights(weights)
            pushes.append((weights.version, weights.fingerprint))

    monkeypatch.setattr(torch_engine, "TorchEngine", RecordingEngine)
    return pushes


def events(run: SmallRun) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "event" in line]


def trained_groups(run: SmallRun) -> list[tuple[int, int]]:
    """Step and group of every trained group."""
    files = sorted((run.folder / "trajectories").glob("*.parquet"))
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    return sorted({(row["step"], row["group_id"]) for row in rows})


@pytest.mark.parametrize("settings", [SYNCHRONOUS, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
async def test_a_run_that_diverges_returns_to_weights_that_gave_finite_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    poison(monkeypatch, BAD_UPDATES)
    pushes = record_pushes(monkeypatch)
    run = await SmallRun(tmp_path, steps=4, logging=KEEP_TRAJECTORIES, **settings).train()
    (event,) = events(run)
    # The weights of step 2 gave the first bad gradients, those of step 1 good ones.
    assert (event["event"], event["from_step"], event["to_step"]) == ("rollback", 4, 1)
    assert "not finite" in event["cause"] and event["learning_rate"] == RATE / 2
    # Versions 0 to 3 were served before; the weights of version 1 are served again as version 4.
    assert [version for version, _ in pushes] == list(range(8))
    assert pushes[4][1] == pushes[1][1] == run.fingerprints[0]
    assert run.column("step") == [1, 2, 3, 4] and run.column("policy_version") == [1, 5, 6, 7]
    assert run.column("learning_rate") == [RATE, RATE / 2, RATE / 2, RATE / 2]
    assert run.lines[1]["staleness"] == 0  # nothing that an abandoned version sampled is trained
    # Two groups a step; those of steps 2 to 4 were drawn twice, and each is trained once.
    steps, groups = zip(*trained_groups(run), strict=True)
    assert steps == (1, 1, 2, 2, 3, 3, 4, 4) and len(set(groups)) == 8
    assert event["lost_groups"] >= 6
    assert run.registry.get_sample_value("searchrl_trainer_rollbacks_total") == 1
    lost = run.registry.get_sample_value("searchrl_trainer_groups_total", {"state": "rolled_back"})
    assert lost == event["lost_groups"]


async def test_a_run_that_is_killed_right_after_a_rollback_continues_it_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        poison(patch, BAD_UPDATES)
        whole = await SmallRun(tmp_path / "whole", steps=4, **SYNCHRONOUS).train()
    with monkeypatch.context() as patch:
        poison(patch, BAD_UPDATES)

        def die(_self: RunCheckpoints, step: int) -> None:
            raise Killed(f"killed before the checkpoints after step {step} were removed")

        patch.setattr(RunCheckpoints, "discard_after", die)
        killed = SmallRun(tmp_path / "killed", steps=4, **SYNCHRONOUS)
        with pytest.raises(Killed):
            await killed.train()
    assert (killed.folder / "checkpoints" / "step_3").is_dir()
    resumed = await SmallRun(tmp_path / "killed", steps=4, **SYNCHRONOUS).train(resume=True)
    assert len(events(resumed)) == 1
    assert resumed.column("learning_rate") == [RATE, RATE / 2, RATE / 2, RATE / 2]
    assert resumed.column("policy_version") == whole.column("policy_version")
    assert resumed.fingerprints == whole.fingerprints


async def test_rollbacks_are_bounded_over_all_processes_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 100))
    settings = {**SYNCHRONOUS, "self_repair__rollbacks": 1, "steps": 5}
    with pytest.raises(TrainingDiverged, match=r"rolled back 1 times already .*first at step 3: gradients were not"):
        await SmallRun(tmp_path, **settings).train()
    again = SmallRun(tmp_path, **settings)
    with pytest.raises(TrainingDiverged, match="rolled back 1 times already"):
        await again.train(resume=True)
    assert len(events(again)) == 1


async def test_a_run_without_a_checkpoint_from_before_ends_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(1, 100))
    with pytest.raises(TrainingDiverged, match=r"at step 2 gradients .* no checkpoint from before that"):
        await SmallRun(tmp_path, steps=3, **SYNCHRONOUS).train()


async def test_a_run_whose_reward_collapses_returns_to_the_best_step(tmp_path: Path) -> None:
    class Generator(SmallWorldGenerator):
        is_wrong = False

        async def judge(self, *arguments: Any, **named: Any) -> Verdict:
            return Verdict(False, "span", "") if self.is_wrong else await super().judge(*arguments, **named)

    generator = Generator()
    collapse = {"collapse_steps": 1, "collapse_window": 1, "collapse_drop": 0.9}
    run = SmallRun(tmp_path, steps=3, generator=generator, self_repair=collapse)
    record = run.service._run_logger.record  # type: ignore[attr-defined]

    async def record_and_collapse(*arguments: Any) -> None:
        await record(*arguments)
        generator.is_wrong = run.service.status().step == 2 and not events(run)

    run.service._run_logger.record = record_and_collapse  # type: ignore[attr-defined,method-assign]
    await run.train()
    (event,) = events(run)
    assert event["from_step"] == 3 and "the reward was below 10% of" in event["cause"]
    rewards = run.column("reward")
    assert event["to_step"] == 1 + (rewards[1] > rewards[0]) and min(rewards) > 0
