"""Passages by row number, by id and by metadata."""

import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.datasets.question_row import question_from_row
from searchrl.datasets.row import Row
from searchrl.errors import ConfigurationError, Unavailable
from services.retriever.corpora.corpus_reader import SourceRow
from services.retriever.corpora.corpus_row import parse_row
from services.retriever.corpora.passage_store import PassageStore, PassageStoreWriter


def store_of(folder: Path, rows: list[dict[str, object]]) -> PassageStore:
    with PassageStoreWriter(folder) as writer:
        for number, fields in enumerate(rows):
            line = orjson.dumps(fields)
            assert writer.add(SourceRow(parse_row(line), line)) == number
    return PassageStore(folder)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(texts.map(lambda id: parse_id(id)), texts, min_size=1, max_size=20))
def test_every_passage_is_found_by_row_and_by_id(contents: dict[str, str]) -> None:
    with TemporaryDirectory() as folder:
        store = store_of(Path(folder) / "s", [{"id": id, "contents": text} for id, text in contents.items()])
        assert len(store) == len(contents)
        for number, (id, text) in enumerate(contents.items()):
            assert store.row(number).contents == text
            found = store.find(id)
            assert found == store.passage(number)
        assert store.find("no such id, surely") is None


def parse_id(id: str) -> str:
    return parse_row(orjson.dumps({"id": id, "contents": "x"})).passage.id


@pytest.mark.parametrize("row", [-1, 2, 100])
def test_a_row_outside_is_an_error_never_another_row(tmp_path: Path, row: int) -> None:
    store = store_of(tmp_path / "s", [{"id": "a", "contents": "x"}, {"id": "b", "contents": "y"}])
    with pytest.raises(IndexError):
        store.passage(row)


def test_rows_with_metadata_are_found_by_equality(tmp_path: Path) -> None:
    worlds = ["w1", "w2", "w1", "w1"]
    rows = [
        {"id": str(number), "contents": "x", "metadata": {"world": world, "parity": str(number % 2)}}
        for number, world in enumerate(worlds)
    ]
    store = store_of(tmp_path / "s", rows)
    assert store.rows_with({}) is None
    for filters, expected in (
        ({"world": "w1"}, [0, 2, 3]),
        ({"world": "w1", "parity": "0"}, [0, 2]),
        ({"world": "w9"}, []),
        ({"missing": "w1"}, []),
    ):
        found = store.rows_with(filters)
        assert found is not None and found.tolist() == expected


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    store_of(tmp_path / "s", [{"id": "a", "contents": "x"}])
    with (tmp_path / "s" / "rows.jsonl").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ConfigurationError, match="truncated or changed"):
        PassageStore(tmp_path / "s")
    (tmp_path / "s" / "ids.npy").write_bytes(b"rubbish")
    with pytest.raises(ConfigurationError, match="no readable passages"):
        PassageStore(tmp_path / "s")


@pytest.mark.parametrize("damaged", [b'{"id" ', b"\xff\xff\xff\xff\xff", b'["a",'])
def test_a_damaged_row_is_an_outage_and_the_others_are_read(tmp_path: Path, damaged: bytes) -> None:
    store_of(tmp_path / "s", [{"id": "a", "contents": "x"}, {"id": "b", "contents": "y"}])
    file = tmp_path / "s" / "rows.jsonl"
    file.write_bytes(damaged + file.read_bytes()[len(damaged) :])
    store = PassageStore(tmp_path / "s")
    assert store.passage(1).text == "y"
    for read in (lambda: store.row(0), lambda: store.find("a")):
        with pytest.raises(Unavailable, match="row 0 of the index in service is damaged"):
            read()


def test_ids_and_filters_are_found_in_either_unicode_form(tmp_path: Path) -> None:
    place, decomposed = "Huế", unicodedata.normalize("NFD", "Huế")
    store = store_of(tmp_path / "s", [{"id": decomposed, "contents": "x", "metadata": {"place": decomposed}}])
    assert store.find(place) == store.find(decomposed) == store.passage(0)
    for filters in ({"place": place}, {"place": decomposed}):
        rows = store.rows_with(filters)
        assert rows is not None and rows.tolist() == [0]


def test_a_truth_value_is_found_by_the_filter_of_a_question(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", [{"id": "a", "contents": "x", "metadata": {"film": True, "year": 1999.0}}])
    question, *_ = question_from_row(Row({"id": "q", "question": "?", "filters": {"film": True, "year": 1999}}))
    rows = store.rows_with(question.filters)
    assert rows is not None and rows.tolist() == [0]
