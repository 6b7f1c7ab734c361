"""The evaluator's commands run, continue where they stopped, and fail with one sentence."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from searchrl.datasets.question_file import read_questions
from searchrl.errors import ConfigurationError, Conflict
from searchrl.rewards.baseline_cache import BaselineCache
from searchrl.storage.artifact_manifest import Artifact, verify_folder, write_artifact
from services.evaluator.store.run_store import RunStore

ROOT = Path(__file__).parents[3]


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"services.evaluator.commands.{name}", *map(str, arguments)]


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_evaluate_continues_after_a_kill_and_reports(start_generator, question_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = ["--questions", question_file, "--methods", "rag", "--method", "s3:label=s3 hot,temperature=1,seed=4"]
    settings += ["--generator", start_generator(0.03), "--output", output, "--concurrency", 2]
    process = subprocess.Popen(command("evaluate", *settings), cwd=ROOT, stderr=subprocess.DEVNULL)
    store_path = output / "results.sqlite"
    while not stored_episodes(store_path):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = stored_episodes(store_path)
    assert 0 < before < 120
    finished = run("evaluate", *settings)
    assert finished.returncode == 0, finished.stderr
    assert stored_episodes(store_path) == 120
    report = json.loads((output / "report.json").read_text())
    assert report["methods"]["s3 hot"]["metrics"]["accuracy"]["mean"] == 1.0
    assert report["differences"][0]["first"] == "s3 hot"
    assert (output / "report.html").stat().st_size > 10_000


def test_a_command_waits_for_services_that_start_later(start_generator, question_file: Path, tmp_path: Path) -> None:
    """In a job, the pod may start before the network policies admit it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--questions", question_file, "--methods", "rag", "--generator", f"127.0.0.1:{port}"]
    arguments += ["--output", tmp_path / "out"]
    process = subprocess.Popen(command("evaluate", *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "waiting for 127.0.0.1" in line:
            break
    start_generator(0.0, port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert stored_episodes(tmp_path / "out" / "results.sqlite") == 60


def stored_episodes(path: Path) -> int:
    try:
        store = RunStore.open_for_reading(path)
    except ConfigurationError:  # the file does not exist yet
        return 0
    return sum(len(store.episodes(record.spec.run_id)) for record in store.runs())


def test_the_baseline_file_has_every_question_and_its_version(start_generator, question_file, tmp_path: Path) -> None:
    output, exported = tmp_path / "baseline.json", tmp_path / "rag_cache.json"
    target = start_generator(0.0)
    arguments = ["--questions", question_file, "--output", output, "--generator", target, "--export-s3", exported]
    done = run("build_baseline", *arguments)
    assert done.returncode == 0, done.stderr
    cache = BaselineCache.load(output)
    assert len(cache) == 60
    assert cache.rag_correct("q0")
    assert not cache.rag_correct("q1")
    assert (cache.version.top_k, cache.version.generator_model, cache.version.judge_version) == (
        3,
        "fake-reader",
        "fake-judge-1",
    )
    imported = run(
        "build_baseline", "--questions", question_file, "--output", tmp_path / "b2.json", "--import-s3", exported
    )
    assert imported.returncode == 0, imported.stderr
    assert BaselineCache.load(tmp_path / "b2.json").rag_correct("q0")
    first, *others = read_questions(question_file).questions
    cache.require_questions([first, *others])  # the check that the trainer makes at its start
    with pytest.raises(Conflict, match="golden answers of question 'q0'"):
        cache.require_questions([replace(first, golden_answers=("another",)), *others])


def test_a_baseline_of_the_same_inputs_is_kept_and_one_of_others_is_built(
    start_generator, question_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "key" / "baseline.json"
    arguments = ["--questions", question_file, "--output", output, "--generator", start_generator(0.0)]
    arguments += ["--if-missing", "--manifest"]
    assert run("build_baseline", *arguments).returncode == 0
    written = output.stat().st_mtime_ns
    again = run("build_baseline", *arguments)
    assert again.returncode == 0 and "nothing to build" in again.stderr
    assert output.stat().st_mtime_ns == written
    artifact = verify_folder(output.parent)
    assert artifact is not None and artifact.metadata["generator_model"] == "fake-reader"
    assert run("build_baseline", *arguments, "--top-k", "2").returncode == 0
    assert BaselineCache.load(output).version.top_k == 2


def test_sigterm_interrupts_and_the_same_call_continues(start_generator, question_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = ["--questions", question_file, "--methods", "rag", "--generator", start_generator(0.05)]
    settings += ["--output", output, "--concurrency", 1]
    process = subprocess.Popen(command("evaluate", *settings), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not stored_episodes(output / "results.sqlite"):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and "run it again to continue" in errors and "Traceback" not in errors
    before = stored_episodes(output / "results.sqlite")
    assert 0 < before < 60
    assert run("evaluate", *settings).returncode == 0
    assert stored_episodes(output / "results.sqlite") == 60


def test_the_output_folder_of_one_model_refuses_another(start_generator, question_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    write_artifact(model, Artifact("model"))
    arguments = ["--questions", question_file, "--methods", "rag", "--generator", start_generator(0.0)]
    arguments += ["--output", tmp_path / "out", "--of", model, "--run-id", "mine"]
    assert run("evaluate", *arguments).returncode == 0
    artifact = verify_folder(tmp_path / "out")
    assert artifact is not None and sorted(artifact.files) == ["report.html", "report.json"]
    (model / "weights").write_text("two")
    damaged = run("evaluate", *arguments)
    assert damaged.returncode == 2 and "checksum" in damaged.stderr
    write_artifact(model, Artifact("model"))
    other = run("evaluate", *arguments)
    assert other.returncode == 2 and "results of another model" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "rag", "--questions", "none.jsonl"], 2, "there is no question file"),
        (["--questions", "QUESTIONS"], 2, "name the answering methods"),
        (["--questions", "QUESTIONS", "--method", "rag:temprature=1"], 2, "settings are label"),  # codespell:ignore
        (["--questions", "QUESTIONS", "--methods", "nonsense"], 2, "does not serve nonsense"),
    ],
)
def test_a_command_that_cannot_run_ends_with_one_sentence(
    start_generator, question_file: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    named = [str(question_file) if argument == "QUESTIONS" else argument for argument in arguments]
    done = run("evaluate", *named, "--generator", start_generator(0.0), "--output", tmp_path / "out")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
