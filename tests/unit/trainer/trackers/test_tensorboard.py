"""Event files of TensorBoard, read with its own reader: curves, texts, resumed runs, and a folder that fails."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.trainer.trackers.base import RunEnd, Sample, TrackedStep, TrackerContext
from services.trainer.trackers.tensorboard import TensorboardTracker
from tests.fakes.small_run import SmallRun

SAMPLE = Sample("Who <b>built</b> it?", ("<search>it</search>\nmore",), ("A title [a]",), "", 0.5, "scored")


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def step(number: int, reward: float, *samples: Sample) -> TrackedStep:
    line: dict[str, Any] = {"step": number, "reward": reward, "collapse_warning": True, "fingerprint": "abc"}
    return TrackedStep(number, line, 100.0 + number, samples)


def track(folder: Path, after_step: int, *steps: TrackedStep) -> None:
    tracker = TensorboardTracker(TrackerContext("run", folder, {}))
    tracker.open(after_step)
    for each in steps:
        tracker.record(each)
    tracker.close(RunEnd.FINISHED)


def test_numbers_are_curves_and_trajectories_are_text(tmp_path: Path) -> None:
    track(tmp_path, 0, step(1, 0.25, SAMPLE), step(2, 0.5))
    events = read(tmp_path)
    assert events.Tags()["scalars"] == ["reward", "collapse_warning"]  # no text, and no step against itself
    assert scalars(tmp_path, "reward") == [(1, 0.25), (2, 0.5)] and scalars(tmp_path, "collapse_warning")[0] == (1, 1.0)
    (event,) = events.Tensors("samples/1/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 1 and "scored, reward 0.5" in text and "- A title [a]" in text
    assert "    <search>it</search>\n    more" in text  # indented: shown as it is


def test_a_resumed_run_hides_the_steps_that_it_repeats(tmp_path: Path) -> None:
    track(tmp_path, 0, step(1, 0.1), step(2, 0.2), step(3, 0.3))  # killed after step 3, with a checkpoint of step 1
    track(tmp_path, 1, step(2, 0.5), step(3, 0.6))
    assert scalars(tmp_path, "reward") == [(1, pytest.approx(0.1)), (2, 0.5), (3, pytest.approx(0.6))]


SMALL: dict[str, Any] = {"rollouts__groups_per_step": 1, "rollouts__group_size": 2}


async def test_a_run_shows_every_step_once_across_a_resume_with_its_trajectories(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging = {"trackers": ["tensorboard"], "trajectories_every": 0, "samples": 2}
    with caplog.at_level("INFO"):
        await SmallRun(tmp_path, steps=1, logging=logging, **SMALL).train()
    run = await SmallRun(tmp_path, steps=2, logging=logging, **SMALL).train(resume=True)
    shown = scalars(run.folder, "reward")
    assert [number for number, _ in shown] == [1, 2]
    assert [value for _, value in shown] == pytest.approx(run.column("reward"))
    tags = [tag for tag in read(run.folder).Tags()["tensors"] if tag.startswith("samples/")]
    assert tags == [f"samples/{number}/text_summary" for number in (1, 2)]
    (line,) = [text for text in caplog.messages if text.startswith("step 1 of 1: reward ")]
    assert "retriever" in line and line.endswith("0 s left")


async def test_a_tracker_that_cannot_write_changes_nothing_but_the_count_of_lost_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = await SmallRun(tmp_path / "plain", steps=2, **SMALL).train()
    failing = SmallRun(tmp_path / "failing", steps=2, logging={"trackers": ["tensorboard"]}, **SMALL)
    failing.folder.mkdir()
    (failing.folder / "tensorboard").touch()  # a file where the folder has to be
    await failing.train()
    assert failing.fingerprints == plain.fingerprints and len(failing.lines) == 2
    name = "searchrl_trainer_tracker_lost_steps_total"
    assert failing.registry.get_sample_value(name, {"tracker": "tensorboard"}) == 2
    said = [text for text in caplog.messages if "tensorboard fails, and training continues without it" in text]
    assert len(said) == 1
