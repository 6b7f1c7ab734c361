"""The job that writes the small world: manifests, repetition, interruption, and files of others."""

from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.jobs.small_world_data import main, write_data
from searchrl.storage.artifact_manifest import verify_folder

SIZES = {"seed": 5, "train_worlds": 1, "test_worlds": 1, "questions_per_world": 4, "large_questions": 4}


def test_corpus_questions_and_model_are_written_with_manifests(tmp_path: Path) -> None:
    assert write_data(tmp_path, "tiny", SIZES)
    kinds = [verify_folder(tmp_path / name) for name in ("corpora/tiny", "questions/tiny", "models/tiny-searcher")]
    assert [artifact.kind for artifact in kinds if artifact] == ["corpus", "questions", "model"]
    assert (tmp_path / "models/tiny-searcher/searcher.json").is_file()
    assert len((tmp_path / "questions/tiny/train.jsonl").read_text().splitlines()) == 4


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    write_data(tmp_path, "tiny", SIZES)
    before = (tmp_path / "corpora/tiny/corpus.jsonl").stat().st_mtime_ns
    assert not write_data(tmp_path, "tiny", SIZES)
    assert (tmp_path / "corpora/tiny/corpus.jsonl").stat().st_mtime_ns == before


def test_another_world_of_the_same_name_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path, "tiny", SIZES)
    with pytest.raises(ConfigurationError, match="another --name"):
        write_data(tmp_path, "tiny", SIZES | {"seed": 6})


def test_an_interrupted_write_is_done_again(tmp_path: Path) -> None:
    write_data(tmp_path, "tiny", SIZES)
    (tmp_path / "questions/tiny/manifest.json").unlink()
    (tmp_path / ".small-world-tiny").mkdir()
    assert write_data(tmp_path, "tiny", SIZES)


def test_existing_files_are_not_changed(tmp_path: Path) -> None:
    (tmp_path / "corpora/tiny").mkdir(parents=True)
    (tmp_path / "corpora/tiny/corpus.jsonl").write_text("mine")
    with pytest.raises(ConfigurationError, match="did not write"):
        write_data(tmp_path, "tiny", SIZES)
    assert (tmp_path / "corpora/tiny/corpus.jsonl").read_text() == "mine"


def test_a_damaged_corpus_is_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(tmp_path), "--train-worlds=1", "--test-worlds=1", "--large-questions=4"]
    assert main(arguments) == 0
    (tmp_path / "corpora/small-world/corpus.jsonl").write_text("")
    assert main(arguments) == 2
    assert "checksum" in capsys.readouterr().err
