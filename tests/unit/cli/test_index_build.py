"""An index is built once per corpus, and a corpus that cannot be used is reported in one sentence."""

import json
from pathlib import Path

import pytest

from searchrl.cli.index_build import IndexWish, build_index, has_index, index_folder, sha256_of
from searchrl.errors import ConfigurationError

ROWS = [{"id": str(number), "contents": f'"Title {number}"\ntext of passage {number}'} for number in range(5)]


@pytest.fixture
def wish(tmp_path: Path) -> IndexWish:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return IndexWish(corpus)


def test_a_built_index_is_found_again_until_the_corpus_changes(wish: IndexWish, tmp_path: Path) -> None:
    phases: set[str] = set()
    sha256 = sha256_of(wish.corpus)
    folder = index_folder(wish, tmp_path / "indexes", sha256)
    assert not has_index(folder, wish, sha256)
    build_index(folder, wish, lambda phase, done, total: phases.add(phase))
    assert has_index(folder, wish, sha256)
    assert phases
    wish.corpus.write_text(json.dumps(ROWS[0]) + "\n")
    changed = sha256_of(wish.corpus)
    assert not has_index(folder, wish, changed)
    assert index_folder(wish, tmp_path / "indexes", changed) != folder


def test_another_kind_is_another_index(wish: IndexWish, tmp_path: Path) -> None:
    hybrid = IndexWish(wish.corpus, "hybrid")
    assert index_folder(wish, tmp_path, "a" * 64) != index_folder(hybrid, tmp_path, "a" * 64)


@pytest.mark.parametrize("row", ["{", '{"id": "7"}', "[1]"])
def test_an_unusable_row_names_its_line_and_leaves_no_index(wish: IndexWish, tmp_path: Path, row: str) -> None:
    with wish.corpus.open("a") as file:
        file.write(row + "\n")
    sha256 = sha256_of(wish.corpus)
    with pytest.raises(ConfigurationError, match=r"no index was built: .*6"):
        build_index(tmp_path / "index", wish, lambda phase, done, total: None)
    assert not has_index(tmp_path / "index", wish, sha256)
    assert not (tmp_path / "index" / "current").exists()


def test_a_corpus_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the corpus"):
        sha256_of(tmp_path / "nowhere.jsonl")
