"""A service that dies in the middle of a step costs no finished rollout; with real processes."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from tests.integration.trainer.conftest import (
    GROUPS,
    SIZE,
    STEPS,
    Environment,
    StartTrainer,
    TrainerProcess,
    final_weights,
)

# Above the default: a test runs the trainer several times, and each process imports torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def rows_of(folder: Path, *columns: str) -> list[dict[str, Any]]:
    """The trained rollouts, in the order of steps, groups and rollouts."""
    files = sorted((folder / "trajectories").glob("step_*.parquet"))
    return [row for path in files for row in parquet.read_table(path, columns=list(columns)).to_pylist()]


def rewards_of(folder: Path) -> list[tuple[int, int, float | None]]:
    rows = rows_of(folder, "group_id", "rollout_index", "reward")
    return [(row["group_id"], row["rollout_index"], row["reward"]) for row in rows]


def trained_tokens(folder: Path) -> Counter[str]:
    """Sampled tokens by rollout, as recorded with the steps."""
    rows = rows_of(folder, "group_id", "rollout_index", "mask")
    return Counter({f"g{row['group_id']:09d}-r{row['rollout_index']:04d}": sum(row["mask"]) for row in rows})


def tokens_of_engine(path: Path) -> Counter[str]:
    """Sampled tokens by rollout, as counted by the engines of all processes of a run.

    Rollouts of the step after the last one, which start before the run ends, are left out.
    """
    counted: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        rollout, ids = json.loads(line)
        counted[rollout] += len(ids)
    return Counter({name: count for name, count in counted.items() if int(name[1:10]) < STEPS * GROUPS})


def is_waiting_for_rewards(trainer: TrainerProcess) -> bool:
    """Whether the last step is saved and every rollout of the next one is sampled and kept on disk."""
    done = len(trainer.lines())
    group_ids = range(done * GROUPS, (done + 1) * GROUPS)
    wanted = {f"g{group_id:09d}-r{rollout_index:04d}" for group_id in group_ids for rollout_index in range(SIZE)}
    kept = {path.name.partition(".")[0] for path in (trainer.folder / "untrained").glob("*.json")}
    latest = trainer.folder / "checkpoints" / "latest"
    return kept == wanted and latest.read_text() == f"step_{done}\n"


def wait_for_pause(trainer: TrainerProcess) -> None:
    trainer.wait_until(lambda: "dispatch is paused" in trainer.log.read_text(), "the outage to be noticed")


def test_a_retriever_killed_in_mid_step_is_waited_for_and_every_group_is_trained_once(
    services: Environment, trainers: StartTrainer, tmp_path: Path
) -> None:
    trainer = trainers(tmp_path / "run")
    trainer.wait_for_step(2)
    services.retriever.kill()
    try:
        wait_for_pause(trainer)
        in_outage = len(trainer.lines())
    finally:
        services.retriever.start()
    folder = trainer.finish()
    assert in_outage < STEPS
    rows = rows_of(folder, "group_id", "rollout_index", "outcome", "reward")
    assert Counter(row["group_id"] for row in rows) == dict.fromkeys(range(STEPS * GROUPS), SIZE)
    assert all((row["reward"] is None) == (row["outcome"] == "InfraFailure") for row in rows)
    scored = Counter(row["group_id"] for row in rows if row["reward"] is not None)
    assert min(scored.values()) >= 2
    assert [line["step"] for line in trainer.lines()] == list(range(1, STEPS + 1))


def test_a_judge_that_is_unavailable_for_a_while_costs_no_token_and_no_reward(
    services: Environment, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    """The LLM and the judge are unavailable until dispatch has been paused and probes have failed."""
    sampled = tmp_path / "sampled.jsonl"
    trainer = trainers(tmp_path / "run", sampled=sampled)
    trainer.wait_for_step(2)
    services.generator.kill()
    try:
        wait_for_pause(trainer)
        trainer.wait_until(lambda: trainer.log.read_text().count("still failing") >= 3, "probes that fail")
        in_outage = len(trainer.lines())
    finally:
        services.generator.start()
    folder = trainer.finish()
    assert in_outage < STEPS
    assert tokens_of_engine(sampled) == trained_tokens(folder) == trained_tokens(uninterrupted)
    assert rewards_of(folder) == rewards_of(uninterrupted)
    assert final_weights(folder) == final_weights(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_ends_while_the_judge_is_unavailable_resumes_with_the_trajectories_that_it_had(
    number: signal.Signals, services: Environment, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    """On SIGTERM it saves and exits at once; after SIGKILL it has its last checkpoint. No token is sampled again."""
    sampled, folder = tmp_path / "sampled.jsonl", tmp_path / "run"
    trainer = trainers(folder, sampled=sampled)
    trainer.wait_for_step(2)
    services.generator.kill()
    try:
        wait_for_pause(trainer)
        trainer.wait_until(lambda: is_waiting_for_rewards(trainer), "a step that waits for rewards")
        trainer.process.send_signal(number)
        assert trainer.end() == (0 if number == signal.SIGTERM else -number), trainer.log.read_text()[-4000:]
    finally:
        services.generator.start()
    assert 2 <= len(trainer.lines()) < STEPS
    assert is_waiting_for_rewards(trainer)
    trainers(folder, resume=True, sampled=sampled).finish()
    assert tokens_of_engine(sampled) == trained_tokens(folder) == trained_tokens(uninterrupted)
    assert rewards_of(folder) == rewards_of(uninterrupted)
    assert final_weights(folder) == final_weights(uninterrupted)
    assert not (folder / "untrained").exists()


def test_a_run_that_is_asked_to_stop_in_an_outage_stops_and_resumes_with_the_same_bits(
    services: Environment, trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    services.retriever.kill()
    try:
        trainer = trainers(tmp_path / "run")
        trainer.wait_until(lambda: "waiting for the services" in trainer.log.read_text(), "the outage to be noticed")
        trainer.process.send_signal(signal.SIGTERM)
        trainer.finish()
    finally:
        services.retriever.start()
    assert trainer.lines() == []
    trainers(trainer.folder).finish()
    assert final_weights(trainer.folder) == final_weights(uninterrupted)
