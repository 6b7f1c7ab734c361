"""Best version, patience and the end of a run follow from the lines of its validations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from services.trainer.validation.history import ValidationHistory, find_last_step
from services.trainer.validation.settings import ValidationSettings

QUESTIONS = Path("held-out.jsonl")


def lines(values: Sequence[float], every: int = 5, question_set: str = "a") -> list[Mapping[str, object]]:
    steps = range(0, every * len(values), every)
    return [
        {"step": step, "validation_success": value, "validation_reward": -value, "validation_set": question_set}
        for step, value in zip(steps, values, strict=True)
    ]


def history(values: Sequence[float], **settings: object) -> ValidationHistory:
    found = ValidationHistory(ValidationSettings(questions=QUESTIONS, **settings), "a")  # type: ignore[arg-type]
    found.restore(lines(values))
    return found


def test_the_best_is_the_highest_and_of_equals_the_earliest() -> None:
    assert history([0.5, 0.7, 0.6, 0.7]).best == (5, 0.7)
    assert history([0.5, 0.7], metric="reward").best == (0, -0.5)
    assert history([]).best is None


def test_small_improvements_add_up_until_they_exceed_the_threshold() -> None:
    # .70 improves; .704 is within .01 of it; .711 exceeds .70 by .011 and starts the count again
    found = history([0.70, 0.704, 0.711, 0.712], patience=2, min_improvement=0.01)
    assert found.without_improvement == 1 and found.deciding_step is None


def test_a_run_ends_after_the_step_beside_which_the_deciding_validation_ran() -> None:
    found = history([0.7, 0.7, 0.6, 0.9], patience=2)
    assert found.deciding_step == 10
    assert [found.ends_run(step) for step in (9, 10, 11)] == [False, False, True]


def test_without_patience_a_run_ends_at_its_last_step() -> None:
    assert history([0.7] * 9).deciding_step is None


@pytest.mark.parametrize(("patience", "last"), [(0, 100), (2, 11), (3, 16), (4, 100)])
def test_the_last_step_of_a_finished_run_follows_from_its_patience(patience: int, last: int) -> None:
    settings = ValidationSettings(questions=QUESTIONS, patience=patience)
    assert find_last_step(settings, 100, lines([0.7, 0.7, 0.6, 0.5])) == last
    assert find_last_step(settings, 4, lines([0.7, 0.7, 0.6, 0.5])) == 4


def test_validations_on_other_questions_and_steps_are_not_compared() -> None:
    found = ValidationHistory(ValidationSettings(questions=QUESTIONS), "b")
    found.restore([*lines([0.9]), {"step": 1, "success": 0.95}, *lines([0.1, 0.2], question_set="b")])
    assert found.best == (5, 0.2) and found.first_step == 0


def test_settings_of_validation_need_its_questions() -> None:
    with pytest.raises(ValueError, match=r"need validation\.questions"):
        ValidationSettings(patience=3)
    assert ValidationSettings().questions is None
