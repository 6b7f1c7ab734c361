"""An index is built once per corpus, and a corpus that cannot be used is reported in one sentence."""

import json
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.local.index_build import IndexRequest, build_index, corpus_sha256, has_index, index_folder

ROWS = [{"id": str(number), "contents": f'"Title {number}"\ntext of passage {number}'} for number in range(5)]


@pytest.fixture
def index(tmp_path: Path) -> IndexRequest:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return IndexRequest(corpus)


def test_a_built_index_is_found_again_until_the_corpus_changes(index: IndexRequest, tmp_path: Path) -> None:
    phases: set[str] = set()
    sha256 = corpus_sha256(index.corpus)
    folder = index_folder(index, tmp_path / "indexes", sha256)
    assert not has_index(folder, index, sha256)
    build_index(folder, index, lambda phase, done, total: phases.add(phase))
    assert has_index(folder, index, sha256)
    assert phases
    index.corpus.write_text(json.dumps(ROWS[0]) + "\n")
    changed = corpus_sha256(index.corpus)
    assert not has_index(folder, index, changed)
    assert index_folder(index, tmp_path / "indexes", changed) != folder


def test_another_kind_is_another_index(index: IndexRequest, tmp_path: Path) -> None:
    hybrid = IndexRequest(index.corpus, "hybrid")
    assert index_folder(index, tmp_path, "a" * 64) != index_folder(hybrid, tmp_path, "a" * 64)


@pytest.mark.parametrize("row", ["{", '{"id": "7"}', "[1]"])
def test_an_unusable_row_names_its_line_and_leaves_no_index(index: IndexRequest, tmp_path: Path, row: str) -> None:
    with index.corpus.open("a") as file:
        file.write(row + "\n")
    sha256 = corpus_sha256(index.corpus)
    with pytest.raises(ConfigurationError, match=r"no index was built: .*6"):
        build_index(tmp_path / "index", index, lambda phase, done, total: None)
    assert not has_index(tmp_path / "index", index, sha256)
    assert not (tmp_path / "index" / "current").exists()


def test_a_corpus_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the corpus"):
        corpus_sha256(tmp_path / "nowhere.jsonl")
