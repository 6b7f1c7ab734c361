"""Validation questions that the run is trained on are refused, or allowed with a warning."""

import logging
from pathlib import Path

import pytest

from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError
from services.trainer.validation.questions import read_validation_questions
from services.trainer.validation.settings import ValidationSettings
from tests.fakes.small_run import write_questions

WORLD = {"world": "w0"}
TRAINED = Question("t1", "Who wrote Moby-Dick?", ("Melville",), filters=WORLD)
HELD_OUT = Question("v1", "Who wrote Emma?", ("Austen",), filters=WORLD)


def settings(folder: Path, *questions: Question, **values: str) -> ValidationSettings:
    return ValidationSettings(questions=write_questions(folder / "held-out.jsonl", questions), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["Who wrote Moby-Dick?", " who  wrote moby-dick? "])
def test_a_question_that_is_also_trained_on_is_refused_whatever_its_id_and_spacing(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"1 of 2 questions in .* are also trained on: 'v2'"):
        read_validation_questions(settings(tmp_path, HELD_OUT, Question("v2", text, ("?",), filters=WORLD)), [TRAINED])


def test_the_same_text_about_another_world_is_another_question(tmp_path: Path) -> None:
    other = Question("v2", TRAINED.text, ("?",), filters={"world": "w1"})
    assert read_validation_questions(settings(tmp_path, other), [TRAINED]) == (other,)


def test_an_overlap_can_be_allowed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_validation_questions(settings(tmp_path, TRAINED, overlap="warn"), [TRAINED])
    assert found == (TRAINED,) and "'t1'; their answers may be known" in caplog.text


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no question"):
        read_validation_questions(settings(tmp_path), [TRAINED])
