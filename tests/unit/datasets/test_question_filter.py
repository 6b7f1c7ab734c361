"""Which questions s3's filters leave out, and that written questions are read as the same ones."""

from pathlib import Path

import pytest

from searchrl.datasets.question_file import read_questions
from searchrl.datasets.question_filter import has_yes_no_answer, question_lines, select
from searchrl.domain.question import Choice, Question, question_sha256, with_options
from searchrl.errors import InvalidRequest

OPTIONS = (Choice("A", "water"), Choice("B", "fire"))
QUESTIONS = [
    Question("1", "Who wrote it?", ("Ada", "A. Byron")),
    Question("nq-2", "Where?", ("1969",), "nq", {"world": "w1"}, {"level": "hard"}, ("p1", "p2")),
    Question("3", "Say <b> & é\u2028?", ("[x",), generator_text="Say it.", retrieval_query="say"),
    Question("4", with_options("What burns?", OPTIONS), ("B", "fire"), choices=OPTIONS),
]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(("yes",), True), (("Ystad", "No"), True), (("True",), True), (("NO",), False), (("yes it is",), False)],
)
def test_any_golden_answer_that_is_yes_or_no_counts(answers: tuple[str, ...], expected: bool) -> None:
    assert has_yes_no_answer(Question("1", "q?", answers)) is expected


def test_a_selection_keeps_the_order_of_the_file() -> None:
    chosen = select(QUESTIONS, lambda question: question.id in ("1", "3"))
    assert [[q.id for q in part] for part in (chosen.kept, chosen.dropped)] == [["nq-2", "4"], ["1", "3"]]


def test_written_questions_are_read_as_the_same_ones(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(question_lines(QUESTIONS), encoding="utf-8")
    found = read_questions(file).questions
    assert list(found) == QUESTIONS
    assert [question_sha256(q) for q in found] == [question_sha256(q) for q in QUESTIONS]


def test_a_question_that_would_be_read_as_another_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'1' cannot be written"):
        question_lines([Question("1", "Which list?", ('["a", "b"]',))])
