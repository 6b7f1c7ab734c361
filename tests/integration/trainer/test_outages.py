"""A service that dies in the middle of a step costs at most that step: rows C33 and C34 with real processes."""

import signal
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.integration.trainer.conftest import GROUPS, SIZE, STEPS, Environment, StartTrainer, final_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", ["retriever", "generator"])
def test_a_service_killed_in_mid_step_is_waited_for_and_every_visit_is_trained_once(
    name: str, services: Environment, trainers: StartTrainer, tmp_path: Path
) -> None:
    service = getattr(services, name)
    trainer = trainers(tmp_path / "run")
    trainer.wait_for_step(2)
    service.kill()
    try:
        trainer.wait_until(lambda: "dispatch is paused" in trainer.log.read_text(), "the outage to be noticed")
        in_outage = len(trainer.lines())
    finally:
        service.start()
    folder = trainer.finish()
    assert in_outage < STEPS
    rows = [
        row
        for path in sorted((folder / "trajectories").glob("*.parquet"))
        for row in parquet.read_table(path, columns=["visit", "sample", "outcome", "reward"]).to_pylist()
    ]
    assert Counter(row["visit"] for row in rows) == dict.fromkeys(range(STEPS * GROUPS), SIZE)
    assert all((row["reward"] is None) == (row["outcome"] == "InfraFailure") for row in rows)
    scored = Counter(row["visit"] for row in rows if row["reward"] is not None)
    assert min(scored.values()) >= 2
    assert [line["step"] for line in trainer.lines()] == list(range(1, STEPS + 1))


def test_a_run_told_to_stop_in_an_outage_stops_and_resumes_with_the_same_bits(
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
