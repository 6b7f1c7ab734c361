"""Manifests of artifacts: written, verified, and used as keys of equal content."""

import json
import os
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import (
    MANIFEST_FILE,
    Artifact,
    main,
    read_artifact,
    verify_folder,
    verify_input,
    write_artifact,
)
from searchrl.storage.durable_files import content_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "rows.jsonl").write_text("a\n")
    (tmp_path / "part" / "more").write_text("b")
    write_artifact(tmp_path, Artifact("corpus", key="k", inputs={"seed": "1"}, metadata={"step": 3}))
    return tmp_path


def test_a_manifest_is_read_back_as_it_was_written(folder: Path) -> None:
    artifact = read_artifact(folder)
    assert artifact is not None
    assert (artifact.kind, artifact.key, artifact.inputs, artifact.metadata) == (
        "corpus",
        "k",
        {"seed": "1"},
        {"step": 3},
    )
    assert sorted(artifact.files) == ["part/more", "rows.jsonl"]
    assert verify_folder(folder) == artifact


@pytest.mark.parametrize("damage", ["b\n", "ab\n", None])
def test_a_changed_cut_or_missing_file_is_found(folder: Path, damage: str | None) -> None:
    rows = folder / "rows.jsonl"
    if damage is None:
        rows.unlink()
    else:
        rows.write_text(damage)
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl"):
        verify_folder(folder)


def test_one_file_of_a_folder_is_verified_alone(folder: Path) -> None:
    (folder / "part" / "more").write_text("changed")
    assert len(verify_input(folder / "rows.jsonl")) == 64


def test_files_without_a_manifest_are_used_and_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.jsonl").write_text("x")
    assert verify_input(tmp_path / "mine.jsonl")
    assert "mine.jsonl" in caplog.text


def test_a_manifest_of_another_program_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text('{"format_version": 1}')
    assert read_artifact(tmp_path) is None


def test_a_half_written_manifest_is_an_error(folder: Path) -> None:
    text = (folder / MANIFEST_FILE).read_text()
    (folder / MANIFEST_FILE).write_text(text[: len(text) // 2])
    with pytest.raises(ConfigurationError, match="damaged"):
        read_artifact(folder)


def test_files_and_their_folders_are_flushed_before_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "rows").write_text("x")
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    write_artifact(tmp_path, Artifact("corpus"))
    manifest = next(place for place, path in enumerate(flushed) if MANIFEST_FILE in path)
    wanted = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "rows"]
    assert {str(path) for path in wanted} <= set(flushed[:manifest])
    assert flushed[manifest + 1 :] == [str(tmp_path)]


def test_equal_parts_have_equal_keys_in_any_order() -> None:
    assert content_key({"a": 1, "b": "x"}) == content_key({"b": "x", "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_the_command_verifies_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    (folder / "rows.jsonl").write_text("z\n")
    assert main(["verify", str(folder)]) == 2
    assert "rows.jsonl" in capsys.readouterr().err
    assert main(["write", "model", str(folder)]) == 0
    assert json.loads((folder / MANIFEST_FILE).read_text())["kind"] == "model"
    assert main(["verify", str(folder / "nowhere")]) == 2
