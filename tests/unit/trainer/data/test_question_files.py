"""Question files: what is read, and which sentence says what is wrong with one."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from searchrl.errors import ConfigurationError
from services.trainer.data.question_files import dataset_fingerprint, read_questions

ROW = {"id": "a", "question": "Who?", "golden_answers": ["X"], "filters": {"world": "w1"}, "gold_doc_ids": ["d"]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_is_a_question(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path / "q.jsonl", ROW))
    assert (question.id, question.text, question.golden_answers) == ("a", "Who?", ("X",))
    assert (question.filters, question.gold_passage_ids) == ({"world": "w1"}, ("d",))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("q.jsonl", None, "there is no question file"),
        ("q.jsonl", b"", "holds no question"),
        ("q.jsonl", b"\n\n", "holds no question"),
        ("q.jsonl", b"{", "q.jsonl:1: not JSON"),
        ("q.jsonl", b"[]", "q.jsonl:1: expected an object"),
        ("q.jsonl", b'{"question": "\xff"}', "q.jsonl:1: not UTF-8 text"),
        ("q.jsonl", b'\n{"question": "Who?"}', "q.jsonl:2: a row needs 'question' and 'golden_answers'"),
        ("q.jsonl", b'{"question": "Who?", "golden_answers": []}', "a row needs 'question' and 'golden_answers'"),
        ("q.jsonl", b'{"question": " ", "golden_answers": ["x"]}', "a row needs 'question' and 'golden_answers'"),
        ("q.parquet", b"PAR", "is not a parquet file"),
        ("q.txt", b"Who?", "question files end in .jsonl or .parquet, not .txt"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_questions(path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_two_questions_with_one_id_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", ROW, {**ROW, "question": "Which?"})
    with pytest.raises(ConfigurationError, match="2 questions have the id 'a'"):
        read_questions(path)


def test_rows_of_search_r1_are_read_from_parquet(tmp_path: Path) -> None:
    row = {
        "data_source": "nq",
        "prompt": [{"role": "user", "content": "Answer the question. Question: who sings?\n"}],
        "reward_model": {"ground_truth": {"target": ["Ann", "Bo"]}, "style": "rule"},
        "extra_info": {"index": 7, "split": "train"},
    }
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "q.parquet")
    (question,) = read_questions(tmp_path / "q.parquet")
    assert (question.id, question.text, question.golden_answers) == ("nq-train-7", "who sings?", ("Ann", "Bo"))


def test_a_parquet_row_without_answers_is_refused(tmp_path: Path) -> None:
    parquet.write_table(
        pa.Table.from_pylist([{"question": "who?", "reward_model": {"style": "rule"}}]), tmp_path / "q.parquet"
    )
    with pytest.raises(ConfigurationError, match=r"row 0 of .*: found no question, or no answers"):
        read_questions(tmp_path / "q.parquet")


def test_c39_the_fingerprint_sees_every_change_that_training_would_see(tmp_path: Path) -> None:
    def fingerprint(*rows: object) -> str:
        return dataset_fingerprint(read_questions(write(tmp_path / "q.jsonl", *rows)))

    other = {**ROW, "id": "b"}
    prints = [
        fingerprint(ROW, other),
        fingerprint(other, ROW),
        fingerprint(ROW),
        fingerprint({**ROW, "golden_answers": ["Y"]}, other),
        fingerprint({**ROW, "filters": {}}, other),
        fingerprint({**ROW, "question": "Whom?"}, other),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({**ROW, "metadata": {"hops": "2"}}, other) == prints[0]
