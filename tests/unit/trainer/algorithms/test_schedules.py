"""Learning-rate schedules: warm-up and decay."""

import pytest
from pydantic import ValidationError

from services.trainer.algorithms.schedules import schedule_factor
from services.trainer.algorithms.settings import ScheduleSettings


def test_warm_up_reaches_one_at_its_last_step_and_stays() -> None:
    settings = ScheduleSettings(warmup_steps=4)
    assert [schedule_factor(settings, step) for step in (0, 1, 3, 4, 100)] == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_linear_decay_ends_at_the_final_fraction() -> None:
    settings = ScheduleSettings(kind="linear", total_steps=10, final_fraction=0.05)
    assert [schedule_factor(settings, step) for step in (0, 5, 10, 20)] == pytest.approx([1.0, 0.5, 0.05, 0.05])


def test_cosine_decay_is_halfway_in_the_middle() -> None:
    settings = ScheduleSettings(kind="cosine", total_steps=10, final_fraction=0.2)
    assert [schedule_factor(settings, step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.6, 0.2])


def test_a_decay_without_an_end_is_refused() -> None:
    with pytest.raises(ValidationError, match="total_steps"):
        ScheduleSettings(kind="linear")
