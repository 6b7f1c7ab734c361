"""An index is built once per corpus, and a corpus that cannot be used is reported in one sentence."""

import json
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.local.index_build import IndexRequest, build_index, corpus_sha256, index_folder

ROWS = [{"id": str(number), "contents": f'"Title {number}"\ntext of passage {number}'} for number in range(5)]


@pytest.fixture
def index(tmp_path: Path) -> IndexRequest:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return IndexRequest(corpus)


def test_an_index_is_built_once_per_corpus(index: IndexRequest, tmp_path: Path) -> None:
    phases: set[str] = set()
    folder = index_folder(index, tmp_path / "indexes", corpus_sha256(index.corpus))
    build_index(folder, index, lambda phase, done, total: phases.add(phase))
    current = (folder / "current").read_text()
    assert phases
    build_index(folder, index, lambda phase, done, total: pytest.fail("the index was built again"))
    assert (folder / "current").read_text() == current
    index.corpus.write_text(json.dumps(ROWS[0]) + "\n")
    assert index_folder(index, tmp_path / "indexes", corpus_sha256(index.corpus)) != folder


def test_another_kind_is_another_index(index: IndexRequest, tmp_path: Path) -> None:
    hybrid = IndexRequest(index.corpus, "hybrid")
    assert index_folder(index, tmp_path, "a" * 64) != index_folder(hybrid, tmp_path, "a" * 64)


@pytest.mark.parametrize("row", ["{", '{"id": "7"}', "[1]"])
def test_an_unusable_row_names_its_line_and_leaves_no_index(index: IndexRequest, tmp_path: Path, row: str) -> None:
    with index.corpus.open("a") as file:
        file.write(row + "\n")
    with pytest.raises(ConfigurationError, match=r"no index was built: .*6"):
        build_index(tmp_path / "index", index, lambda phase, done, total: None)
    assert not (tmp_path / "index" / "current").exists()


def test_a_corpus_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the corpus"):
        corpus_sha256(tmp_path / "nowhere.jsonl")
