"""Are question files of every known form read, and unusable ones refused by line?"""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from searchrl.errors import InvalidRequest, NotFound
from services.evaluator.datasets.question_reader import questions_sha256, read_questions
from services.evaluator.datasets.question_row import question_from_row, row_from_question


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


OURS = {
    "id": "q1",
    "question": " Who? ",
    "golden_answers": ["Ann", " "],
    "gold_doc_ids": [5, "9"],
    "filters": {"world": "w1"},
    "metadata": {"hops": 2, "deep": [1]},
}


def test_a_row_of_ours_is_read_whole(tmp_path: Path) -> None:
    question = read_questions(write(tmp_path / "q.jsonl", OURS)).questions[0]
    assert (question.id, question.text, question.golden_answers) == ("q1", "Who?", ("Ann",))
    assert question.gold_passage_ids == ("5", "9")
    assert question.filters == {"world": "w1"}
    assert question.metadata == {"hops": "2"}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "answer": "Ann"},
        {"question": "Who?", "golden_answers": "Ann", "meta": {"split": "dev"}},
        {"data_source": "nq", "question": "Who?", "reward_model": {"ground_truth": {"target": ["Ann"]}}},
        {"source": "nq", "question": "Who?", "reward_model": {"ground_truth": {"target": "Ann", "question": "Who?"}}},
    ],
)
def test_rows_of_other_projects_are_read(tmp_path: Path, row: dict) -> None:
    question = read_questions(write(tmp_path / "q.jsonl", row)).questions[0]
    assert question.golden_answers == ("Ann",)
    assert question.id == "0"
    assert question.source == (row.get("data_source") or row.get("source") or "")


def test_choices_join_the_question(tmp_path: Path) -> None:
    row = {"question": "Which?", "answer": "B: two", "choices": {"A": "one", "B": "two"}}
    assert question_from_row(row, 0).text == "Which?\nOptions:\nA: one\nB: two"
    assert question_from_row({**row, "choices": ["one", "two"]}, 0).text == "Which?\nOptions:\nA: one\nB: two"


def test_a_question_survives_the_store(tmp_path: Path) -> None:
    question = question_from_row(OURS, 0)
    assert question_from_row(row_from_question(question), 0) == question


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([OURS, "{"], "line 2"),
        ([OURS, "[]"], "line 2: must be a JSON object"),
        ([OURS, {"id": "b", "question": " "}], "line 2: needs a non-empty"),
        ([OURS, "", {"id": "b", "question": "x"}], "line 3: question 'b' has no golden answers"),
        ([OURS, {"id": "b", "question": "x", "answer": " "}], "no golden answers"),
        ([OURS, OURS], "line 2: id 'q1' was used before, in line 1"),
        ([{**OURS, "filters": {"a": [1]}}], "must hold texts only"),
        ([{**OURS, "filters": 3}], "must be an object"),
        ([{**OURS, "golden_answers": [["x"]]}], "list of texts"),
        ([{**OURS, "question": "\ud800"}], "lone surrogate"),
        ([{**OURS, "id": ""}], "must be a text or a whole number"),
        ([], "holds no question"),
    ],
)
def test_an_unusable_row_is_named(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_questions(write(tmp_path / "q.jsonl", *rows))


def test_questions_without_answers_pass_where_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "Why?"})
    assert read_questions(path, need_golden_answers=False).questions[0].golden_answers == ()


def test_the_fingerprint_is_of_the_unpacked_file_and_ignores_the_limit(tmp_path: Path) -> None:
    plain = write(tmp_path / "q.jsonl", OURS, {**OURS, "id": "q2"})
    packed = tmp_path / "q.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    whole = read_questions(plain)
    assert whole.sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert read_questions(packed, limit=1).sha256 == whole.sha256 == questions_sha256(packed)
    assert len(read_questions(packed, limit=1).questions) == 1


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InvalidRequest):
        read_questions(tmp_path / "bad.jsonl.gz")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_questions(tmp_path / "bad.jsonl")
