"""The command ``evaluate`` records what its results were made from, and accepts no other inputs."""

import json
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import Artifact, write_artifact
from services.evaluator.commands.evaluate import INPUTS_FILE, claim_output, name_inputs, parse_arguments


def write_model(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(content)
    write_artifact(folder, Artifact("model"))
    return folder


def claim(tmp_path: Path, *folders: Path) -> dict[str, str]:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}")
    arguments = [f"--questions={questions}", f"--output={tmp_path / 'out'}", "--generator=localhost:1"]
    return claim_output(parse_arguments([*arguments, *(f"--of={folder}" for folder in folders)]))


def test_two_folders_of_one_name_are_both_recorded_and_checked(tmp_path: Path) -> None:
    searcher = write_model(tmp_path / "searcher" / "model", "a")
    generator = write_model(tmp_path / "generator" / "model", "b")
    inputs = claim(tmp_path, searcher, generator)
    assert set(inputs) == {"questions.jsonl", "searcher/model", "generator/model"}
    assert json.loads((tmp_path / "out" / INPUTS_FILE).read_text()) == inputs
    assert claim(tmp_path, generator, searcher) == inputs
    write_model(searcher, "c")
    with pytest.raises(ConfigurationError, match="another searcher/model: choose"):
        claim(tmp_path, searcher, generator)


def test_an_input_is_named_by_as_few_parts_of_its_path_as_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    paths = [Path("/a/x/model"), Path("/b/x/model"), Path("/model"), Path("q.jsonl"), Path("."), Path("../tmp/q.jsonl")]
    assert list(name_inputs(paths)) == ["a/x/model", "b/x/model", "/model", "q.jsonl", "tmp"]
