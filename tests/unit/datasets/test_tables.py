"""Question files that are tables (CSV, TSV): cells, headers, and the place of what cannot be used."""

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.datasets.question_file import (
    read_questions,
)
from searchrl.errors import InvalidRequest


def test_a_cell_of_a_table_may_be_empty_or_hold_a_list_a_line_end_or_an_option(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    head = 'question,golden_answers,choices,answer\n"a ""b""\nc?","[""x"", ""y""]",,\n'
    path.write_text(f"{head}Which?,,\"['u', 'v']\",1\n")
    with pytest.raises(InvalidRequest, match=r"q.csv, line 4: \"choices\" is text but not JSON"):
        read_questions(path)
    path.write_text(f'{head}Which?,,"[""u"", ""v""]",1\n')
    first, second = read_questions(path).questions
    assert (first.text, first.golden_answers, first.choices) == ('a "b"\nc?', ("x", "y"), ())
    assert second.golden_answers == ("B", "v")


def test_a_cell_of_a_table_may_be_large(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(f"question,answer\nWho?,{'x' * 140_000}\n")
    (question,) = read_questions(path).questions
    assert question.golden_answers == ("x" * 140_000,)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \r\n", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("other_columns", [3, 4000])
def test_a_header_may_be_longer_than_what_is_read_at_once(
    tmp_path: Path, pack: Callable[[bytes], bytes], delimiter: str, start: bytes, other_columns: int
) -> None:
    others = [f"column {number}" for number in range(other_columns)]
    rows = [["question", *others, "answer"], ["Who?", *["x"] * other_columns, "Ann"]]
    content = start + "".join(delimiter.join(row) + "\r\n" for row in rows).encode()
    path = tmp_path / "questions"
    path.write_bytes(pack(content))
    read = read_questions(path)
    assert [(question.text, question.golden_answers) for question in read.questions] == [("Who?", ("Ann",))]
    assert read.sha256 == hashlib.sha256(content).hexdigest()


def test_a_long_line_without_questions_is_quoted_in_part(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("id," * 100_000)
    with pytest.raises(InvalidRequest, match="line 1: no column with questions") as caught:
        read_questions(path)
    assert len(str(caught.value)) < 500


def test_the_table_of_dpr_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "nq-test.qa.csv"
    path.write_text("who wrote it\t['Vella Norr', 'V. Norr']\nwhere is it\t[\"Ystad\"]\n")
    assert [(q.text, q.golden_answers) for q in read_questions(path).questions] == [
        ("who wrote it", ("Vella Norr", "V. Norr")),
        ("where is it", ("Ystad",)),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,answer\n1,x\n", "line 1: no column with questions, found 'id,answer'"),
        (b"question,answer\nWho?,x\nWho, when?,y\n", "line 3: needs 2 cells, found 3"),
        (b"question,answer\nWho?\n", "line 2: needs 2 cells, found 1"),
        (b"\n\r\nquestion,answer\nWho?\n", "line 4: needs 2 cells, found 1"),
        (b"\xef\xbb\xbf\nquestion,answer\n\nWho?\n", "line 4: needs 2 cells, found 1"),
        (b"\n\nquestion,answer\nWho?,\n", "line 4: question .* has no golden answers"),
        (b"question,answer\nWho?,\xff\n", "line 2: not UTF-8"),
        (b'question,answer\n"Who?,x\n' + b"y\n" * 80_000, "line 2: not a readable table row"),
        (b"question,answer\n", "holds no question"),
        (b"question,answer\nWho?,\n", "line 2: question .* has no golden answers"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        read_questions(path)
