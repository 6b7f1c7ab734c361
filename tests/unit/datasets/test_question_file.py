"""Question files: the layout is recognized by its bytes, and one sentence names the place of what cannot be used."""

import contextlib
import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from searchrl.datasets import file_content, question_file
from searchrl.datasets.question_file import (
    dataset_fingerprint,
    questions_sha256,
    read_questions,
    read_training_questions,
)
from searchrl.errors import ConfigurationError, InvalidRequest, NotFound, ServiceError, TooLarge

OURS = {
    "id": "q1",
    "question": " Who? ",
    "golden_answers": ["Ann", " "],
    "gold_doc_ids": [5, "9"],
    "filters": {"world": "w1", "open": True, "year": 1969.0},
    "metadata": {"hops": 2, "deep": [1]},
}
OTHER = {"id": "q2", "question": "Where?", "answer": "Ystad"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def ids_of(path: Path) -> list[str]:
    return [question.id for question in read_questions(path).questions]


def test_every_field_of_the_own_format_is_read(tmp_path: Path) -> None:
    question = read_questions(write(tmp_path / "q.jsonl", OURS)).questions[0]
    assert (question.id, question.text, question.golden_answers) == ("q1", "Who?", ("Ann",))
    assert (question.generator_text, question.retrieval_query) == ("Who?", "Who?")
    assert question.gold_passage_ids == ("5", "9")
    assert question.filters == {"world": "w1", "open": "true", "year": "1969"}
    assert question.metadata == {"hops": "2"}


def test_a_row_may_set_each_of_the_three_texts(tmp_path: Path) -> None:
    row = {**OURS, "generator_text": "Who, exactly?", "retrieval_query": "who"}
    question = read_questions(write(tmp_path / "q.jsonl", row)).questions[0]
    assert (question.text, question.generator_text, question.retrieval_query) == ("Who?", "Who, exactly?", "who")


def test_filters_and_metadata_may_be_json_text(tmp_path: Path) -> None:
    row = {**OURS, "filters": '{"world": "w1", "open": true}', "metadata": '{"hops": 2}'}
    question = read_questions(write(tmp_path / "q.jsonl", row)).questions[0]
    assert (question.filters, question.metadata) == ({"world": "w1", "open": "true"}, {"hops": "2"})
    (plain,) = read_questions(write(tmp_path / "p.jsonl", {**OURS, "metadata": "none", "filters": None})).questions
    assert (plain.filters, plain.metadata) == ({}, {})


def layouts() -> dict[str, bytes]:
    """The same two questions in every layout that is read, by the layout's name."""
    lines = f"{json.dumps(OURS)}\n{json.dumps(OTHER)}\n".encode()
    table = pa.Table.from_pylist([{key: row.get(key) for key in ("id", "question", "answer")} for row in (
        {**OURS, "answer": "Ann"}, OTHER
    )])  # fmt: skip
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer)
    return {
        "lines": lines,
        "lines without an end": lines.rstrip(),
        "byte order mark": b"\xef\xbb\xbf" + lines,
        "CRLF": lines.replace(b"\n", b"\r\n"),
        "blank lines": b"\n \n" + lines.replace(b"\n", b"\n\n"),
        "array": json.dumps([OURS, OTHER]).encode(),
        "indented array": json.dumps([OURS, OTHER], indent=2).encode(),
        "array of lines": b"[" + lines.strip().replace(b"}\n{", b"},\n{") + b"]",
        "gzip": gzip.compress(lines),
        "gzip of two members": gzip.compress(lines.splitlines(True)[0]) + gzip.compress(lines.splitlines(True)[1]),
        "rows under one key": json.dumps({"version": 1, "data": [OURS, OTHER]}, indent=1).encode(),
        "rows by id": json.dumps(
            {"q1": {"question": "Who?", "answer": "Ann"}, "q2": {"question": "Where?", "answer": "Ystad"}}
        ).encode(),
        "columns": json.dumps(
            {"id": ["q1", "q2"], "question": ["Who?", "Where?"], "answer": ["Ann", "Ystad"]}
        ).encode(),
        "columns of pandas": json.dumps(
            {"id": {"0": "q1", "1": "q2"}, "question": {"0": "Who?", "1": "Where?"}, "answer": {"0": "A", "1": "B"}}
        ).encode(),
        "parquet": buffer.getvalue().to_pybytes(),
        "CSV": b"id,question,answer\nq1,Who?,Ann\nq2,Where?,Ystad\n",
        "CSV of a spreadsheet": b'\xef\xbb\xbf"Id";"Question";"Answer"\r\nq1;Who?;A\r\nq2;"Where;\r\nwhen?";B',
        "TSV": b"id\tquestion\tanswer\nq1\tWho, when?\t['Ann', 'B']\n\nq2\tWhere?\tYstad\n",
        "gzip of CSV": gzip.compress(b"_id,text,answer\nq1,Who?,Ann\nq2,Where?,Ystad\n"),
    }


@pytest.mark.parametrize("layout", sorted(layouts()))
@pytest.mark.parametrize("name", ["q.jsonl", "q.parquet", "q.jsonl.gz", "questions"])
def test_the_bytes_and_not_the_name_say_how_a_file_is_read(tmp_path: Path, layout: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(layouts()[layout])
    assert ids_of(path) == ["q1", "q2"]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    row = json.dumps({"question": "a\u2028b\x0cc\x85d?", "answer": "x"}, ensure_ascii=False)
    (question,) = read_questions(write(tmp_path / "q.jsonl", row)).questions
    assert question.text == "a\u2028b\x0cc\x85d?"


def test_a_file_of_one_row_is_one_question(tmp_path: Path) -> None:
    assert ids_of(write(tmp_path / "q.jsonl", OURS)) == ["q1"]
    assert ids_of(write(tmp_path / "q.json", json.dumps(OURS, indent=2))) == ["q1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([OURS, "{"], r"line 2: not JSON"),
        (["{", OURS], r"line 1: not JSON"),
        ([OURS, "[]"], "line 2: must be a JSON object, found a list of 0"),
        (["3", OURS], "line 1: must be a JSON object, found 3"),
        (['["x"]'], "entry 1: must be a JSON object, found 'x'"),
        ([OURS, {"id": "b", "question": " "}], "line 2: needs a non-empty"),
        ([OURS, {"id": "b", "frage": "Wer?"}], "line 2: needs .* found the keys 'id', 'frage'"),
        ([OURS, {"id": "b", "question": ["x"]}], "line 2: needs .* found a list of 1"),
        ([OURS, "", {"id": "b", "question": "x"}], "line 3: question 'b' has no golden answers"),
        ([OURS, {"id": "b", "question": "x", "answer": " "}], "line 2: question 'b' has no golden answers"),
        ([OURS, OURS], "line 2: id 'q1' was used before, in line 1"),
        ([[OURS, OURS]], "entry 2: id 'q1' was used before, in entry 1"),
        ([{**OURS, "filters": {"a": [1]}}], "must hold texts, numbers or truth values, found a list of 1 in 'a'"),
        ([{**OURS, "filters": 3}], "must be an object, found 3"),
        ([{**OURS, "golden_answers": [{"x": 1}]}], "no answer in an object with 'x'"),
        ([{**OURS, "question": "\ud800"}], "lone surrogate"),
        ([{**OURS, "golden_answers": ["\ud800"]}], "lone surrogate"),
        ([{**OURS, "id": ["a"]}], '"id" must be a text or a number, found a list of 1'),
        ([{**OURS, "gold_doc_ids": {"a": 1}}], '"gold_doc_ids" must be a list of ids'),
        ([{"train": [OURS], "test": [OTHER]}], "holds several lists .*'train', 'test'"),
        ([{"version": "1.0"}], "holds no list of rows .* found '1.0' in 'version'"),
        (["[" * 100_000], "not usable JSON"),
        ([f'{{"id": 1{"0" * 5000}, "question": "x"}}'], "not usable JSON"),
        ([], "holds no question"),
        (["[]"], "holds no question"),
        (["\n\n"], "holds no question"),
    ],
)
def test_an_unusable_row_is_named_with_its_place(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_questions(write(tmp_path / "q.jsonl", *rows))
    assert str(tmp_path / "q.jsonl") in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigurationError, match=message):
        read_training_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "\xff"}', "line 1: not UTF-8 text"),
        ('{"question": "x"}'.encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "Git LFS pointer"),
        (b"PAR1 and no more", "not a readable parquet file"),
        (gzip.compress(json.dumps(OURS).encode())[:-9], "cannot be read"),
        (b"\x1f\x8bno gzip", "cannot be read"),
        (b"- question: who?\n  answer: Ann\n", "line 1: not JSON"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_questions(path)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_questions_or_one_of_the_documented_errors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    for head in (b"", b'{"question": "x", "answer": ', b"[", b"PAR1", b"\x1f\x8b\x08\x00"):
        path.write_bytes(head + content)
        with contextlib.suppress(InvalidRequest, TooLarge):
            assert read_questions(path, need_golden_answers=False).questions


def test_missing_files_folders_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(NotFound, match="there is no question file"):
            read_questions(path)


def test_a_file_that_unpacks_to_more_than_the_limits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, size in (("MAX_FILE_BYTES", 100_000), ("MAX_DOCUMENT_BYTES", 50_000), ("MAX_ROW_BYTES", 10_000)):
        monkeypatch.setattr(file_content, limit, size)
    monkeypatch.setattr(file_content, "_CHUNK_BYTES", 1_000)
    for name, content in (
        ("blank", b"\n" * 200_000),
        ("long", b" " * 200_000),
        ("text", b'{"question": "' + b"x" * 200_000),
        ("second line", json.dumps(OURS).encode() + b"\n" + b'{"question": "' + b"x" * 20_000),
        ("indented", b"[\n" + b'{"question":\n' * 10_000),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(TooLarge):
            read_questions(tmp_path / name)
    monkeypatch.setattr(question_file, "MAX_QUESTIONS", 1)
    with pytest.raises(TooLarge, match="more than 1 questions"):
        read_questions(write(tmp_path / "q.jsonl", OURS, OTHER))


def test_a_file_that_unpacks_to_hundreds_of_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_content, "RATIO_FREE_BYTES", 100_000)
    monkeypatch.setattr(file_content, "_CHUNK_BYTES", 10_000)
    for name, content in (("blank", b"\n"), ("spaces", b" "), ("array", b"[")):
        (tmp_path / name).write_bytes(gzip.compress(content * 5_000_000))
        with pytest.raises(TooLarge, match="more than 100 times its size"):
            read_questions(tmp_path / name)


def test_an_array_in_one_line_may_be_longer_than_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_content, "MAX_ROW_BYTES", 1_000)
    monkeypatch.setattr(file_content, "_CHUNK_BYTES", 300)
    rows = [{"id": number, "question": f"Q {number}?", "answer": "x"} for number in range(100)]
    assert len(ids_of(write(tmp_path / "q.json", json.dumps(rows)))) == 100
    assert len(ids_of(write(tmp_path / "q.jsonl", *rows))) == 100


def test_questions_without_answers_pass_where_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "Why?"})
    assert read_questions(path, need_golden_answers=False).questions[0].golden_answers == ()


def test_a_row_without_an_id_has_the_same_one_in_every_copy_and_order(tmp_path: Path) -> None:
    rows = [{"question": f"Q {number}?", "golden_answers": ["x"]} for number in range(3)]
    (tmp_path / "elsewhere").mkdir()
    first = ids_of(write(tmp_path / "q.jsonl", *rows))
    moved = ids_of(write(tmp_path / "elsewhere" / "other.json", json.dumps(rows[::-1])))
    trained = read_training_questions(tmp_path / "q.jsonl").questions
    assert first == moved[::-1] == [question.id for question in trained]
    assert len(set(first)) == 3


def test_the_same_question_twice_without_ids_is_two_questions(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": "x"}
    first, second = ids_of(write(tmp_path / "q.jsonl", row, row))
    assert second == f"{first}-2"


@pytest.mark.parametrize(
    ("given", "id"), [(0, "0"), (7, "7"), (1.0, "1"), ("0", "0"), (" a ", "a"), ("train_0", "train_0")]
)
@pytest.mark.parametrize("key", ["id", "_id", "qid", "question_id", "QuestionId"])
def test_numbers_and_texts_are_ids_and_zero_is_one(tmp_path: Path, key: str, given: object, id: str) -> None:
    assert ids_of(write(tmp_path / "q.jsonl", {key: given, "question": "Q?", "answer": "x"})) == [id]


@pytest.mark.parametrize("missing", [None, "", " ", float("nan")])
def test_a_blank_id_is_not_an_id(tmp_path: Path, missing: object) -> None:
    named = ids_of(write(tmp_path / "q.jsonl", {"id": missing, "question": "Q?", "answer": "x"}))
    assert named == ids_of(write(tmp_path / "p.jsonl", {"question": "Q?", "answer": "x"}))


def test_the_fingerprint_is_of_the_unpacked_file_and_ignores_the_limit(tmp_path: Path) -> None:
    plain = write(tmp_path / "q.jsonl", OURS, {**OURS, "id": "q2"})
    packed = tmp_path / "q.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    whole = read_questions(plain)
    assert whole.sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert read_questions(packed, limit=1).sha256 == whole.sha256 == questions_sha256(packed)
    assert len(read_questions(packed, limit=1).questions) == 1
    for name, content in layouts().items():
        path = tmp_path / "layout"
        path.write_bytes(content)
        unpacked = gzip.decompress(content) if name.startswith("gzip") else content
        assert questions_sha256(path) == hashlib.sha256(unpacked).hexdigest(), name


def test_the_fingerprint_of_questions_sees_every_change_that_training_would_see(tmp_path: Path) -> None:
    def fingerprint(*rows: object) -> str:
        return dataset_fingerprint(read_training_questions(write(tmp_path / "q.jsonl", *rows)).questions)

    row = {"id": "a", "question": "Who?", "golden_answers": ["X"], "filters": {"world": "w1"}}
    other = {**row, "id": "b"}
    prints = [
        fingerprint(row, other),
        fingerprint(other, row),
        fingerprint(row),
        fingerprint({**row, "golden_answers": ["Y"]}, other),
        fingerprint({**row, "filters": {}}, other),
        fingerprint({**row, "question": "Whom?"}, other),
        fingerprint({**row, "retrieval_query": "whom"}, other),
        fingerprint({**row, "generator_text": "whom"}, other),
        fingerprint({**row, "choices": ["X", "Y"]}, other),
        fingerprint({**row, "choices": ["X", "Z"]}, other),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({**row, "metadata": {"hops": "2"}}, other) == prints[0]


def test_a_parquet_file_without_pyarrow_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.parquet"
    path.write_bytes(layouts()["parquet"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises((ConfigurationError, ServiceError), match="needs pyarrow"):
        read_questions(path)
