"""An index is built once per content: the same corpus and settings find the existing generation."""

import json
from pathlib import Path

import pytest

from searchrl.storage.artifact_manifest import Artifact, write_artifact
from services.retriever.build_index import main
from services.retriever.generations.index_store import IndexStore


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"id": str(number), "contents": f'"Title {number}"\ntext {number}'} for number in range(3)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_artifact(folder, Artifact("corpus"))
    return folder / "corpus.jsonl"


def build(corpus: Path, output: Path, *more: str) -> int:
    return main(["--corpus", str(corpus), "--output", str(output), "--progress", "json", "--if-missing", *more])


def test_the_same_corpus_and_settings_are_built_once(corpus: Path, tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    assert build(corpus, store.folder) == 0
    assert build(corpus, store.folder) == 0
    assert [manifest.generation for manifest in store.list()] == [store.current()]


def test_an_older_generation_of_the_same_content_is_served_again(corpus: Path, tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    build(corpus, store.folder)
    first = store.current()
    build(corpus, store.folder, "--language", "cjk")
    assert store.current() != first
    build(corpus, store.folder)
    assert store.current() == first and len(store.list()) == 2


def test_another_corpus_is_another_generation(corpus: Path, tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    build(corpus, store.folder)
    corpus.write_text(corpus.read_text().replace("text 1", "other"))
    write_artifact(corpus.parent, Artifact("corpus"))
    build(corpus, store.folder)
    assert len(store.list()) == 2


def test_a_damaged_generation_is_not_used_again(corpus: Path, tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    build(corpus, store.folder)
    first = store.current()
    assert first is not None
    next((store.generation_folder(first) / "passages").iterdir()).write_bytes(b"")
    assert build(corpus, store.folder) == 0
    assert store.current() != first


def test_a_corpus_that_differs_from_its_manifest_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_text(corpus.read_text() + "\n")
    assert build(corpus, tmp_path / "index") == 2
    assert "checksum" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--max-tokens", "--nprobe", "--ef-search"])
def test_a_number_below_one_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        build(corpus, tmp_path / "index", flag, "-5")
    assert f"{flag}: must be at least 1" in capsys.readouterr().err
