"""Asynchronous runs and Ray actors, with real processes.

Staleness counts from a row's oldest sampled token, and a resumed run trains every group exactly once.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from tests.integration.trainer.conftest import GROUPS, SIZE, STEPS, StartTrainer, step_lines

# Above the default: a test runs the trainer several times, and each process imports torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    columns = ["step", "group_id", "rollout_index", "versions", "mask"]
    files = sorted((folder / "trajectories").glob("*.parquet"))
    return [row for path in files for row in parquet.read_table(path, columns=columns).to_pylist()]


def age(row: dict[str, Any]) -> int:
    """Policy versions between the row's oldest sampled token and the weights that the row updated."""
    sampled = [version for version, is_sampled in zip(row["versions"], row["mask"], strict=True) if is_sampled]
    return row["step"] - 1 - min(sampled)


def test_with_staleness_one_no_trained_token_is_older_and_a_kill_loses_and_repeats_no_group(
    trainers: StartTrainer, tmp_path: Path
) -> None:
    stale = {"rollouts.max_staleness": 1, "algorithm.loss.old_policy": "proximal"}
    folder = tmp_path / "run"
    assert trainers(folder, settings=stale, killed=("checkpoint", 4)).end() == -signal.SIGKILL
    trainer = trainers(folder, resume=True)
    trainer.finish()
    rows = rows_of(folder)
    ages = {age(row) for row in rows}
    assert ages == {0, 1}
    assert {line["staleness"] for line in trainer.lines()} <= {0, 1}
    trained = [(row["group_id"], row["rollout_index"]) for row in rows]
    assert len(trained) == len(set(trained)) == STEPS * GROUPS * SIZE
    # groups that were drawn ahead and not trained are at most those of one step
    assert max(group_id for group_id, _ in trained) < (STEPS + 1) * GROUPS


def test_one_ray_actor_trains_the_same_bits_as_no_ray(
    trainers: StartTrainer, uninterrupted: Path, tmp_path: Path
) -> None:
    trainer = trainers(tmp_path / "run", settings={"learner.ranks": 1, "steps": 2})
    trainer.finish()
    expected = step_lines(uninterrupted)[:2]
    assert [line["fingerprint"] for line in trainer.lines()] == [line["fingerprint"] for line in expected]
