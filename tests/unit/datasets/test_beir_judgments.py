"""Queries of BEIR with their judgments: the gold passages of a question."""

import gzip
import json
from pathlib import Path

import pytest

from searchrl.datasets.question_file import read_questions
from searchrl.errors import InvalidRequest


def write_beir(tmp_path: Path, qrels: str, name: str = "qrels/test.tsv") -> Path:
    rows = [{"_id": f"q{number}", "text": f"Query {number}?", "metadata": {}} for number in range(3)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(qrels)
    return tmp_path / "queries.jsonl"


@pytest.mark.parametrize(
    "qrels",
    ["query-id\tcorpus-id\tscore\nq0\td1\t1\nq0\td2\t2\nq1\td9\t0\nq2\td3\t1\n", "q0 0 d2 2\nq0 0 d1 1\nq2 0 d3 1\n"],
)
def test_the_judged_queries_of_beir_get_their_passages_best_first(tmp_path: Path, qrels: str) -> None:
    path = write_beir(tmp_path, qrels)
    questions = read_questions(path, need_golden_answers=False).questions
    assert [(question.id, question.gold_passage_ids) for question in questions] == [
        ("q0", ("d2", "d1")),
        ("q2", ("d3",)),
    ]


def test_other_judgments_are_another_data_set(tmp_path: Path) -> None:
    path = write_beir(tmp_path, "q0\td1\t1\n")
    before = read_questions(path, need_golden_answers=False).sha256
    write_beir(tmp_path, "q0\td2\t1\n")
    assert read_questions(path, need_golden_answers=False).sha256 != before


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q0\td1\tx\nq0\td1\ty\n", "line 2: the score is not a number"),
        ("q0\n", "line 1: needs query"),
        ("z\td\t1\n", "none"),
    ],
)
def test_judgments_that_cannot_be_used_are_named(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_questions(write_beir(tmp_path, qrels), need_golden_answers=False)


def test_damaged_packed_judgments_are_refused_with_their_path(tmp_path: Path) -> None:
    path = write_beir(tmp_path, "", "qrels.tsv.gz")
    packed = gzip.compress(b"q0\td1\t1\n")
    # The header takes ten bytes; a block of type 3 follows, which deflate does not have.
    (tmp_path / "qrels.tsv.gz").write_bytes(packed[:10] + b"\xff" + packed[11:])
    with pytest.raises(InvalidRequest, match=r"qrels\.tsv\.gz cannot be read: .*invalid block type"):
        read_questions(path, need_golden_answers=False)


def test_queries_without_judgments_are_questions_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": "a", "text": "Query?"}\n')
    with pytest.raises(InvalidRequest, match="no golden answers"):
        read_questions(path)
    assert read_questions(path, need_golden_answers=False).questions[0].text == "Query?"
