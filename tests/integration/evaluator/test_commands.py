"""Do the commands run, continue where they stopped, and fail with one sentence?"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.rewards.baseline_cache import BaselineCache
from services.evaluator.store.run_store import RunStore

ROOT = Path(__file__).parents[3]


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"services.evaluator.{name}", *map(str, arguments)]


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


def stored_episodes(path: Path) -> int:
    try:
        store = RunStore.open_for_reading(path)
    except ConfigurationError:  # not made yet
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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "rag", "--questions", "none.jsonl"], 1, "there is no question file"),
        (["--questions", "QUESTIONS"], 2, "name the answering methods"),
        (["--questions", "QUESTIONS", "--method", "rag:temprature=1"], 2, "settings are label"),
        (["--questions", "QUESTIONS", "--methods", "nonsense"], 1, "does not serve nonsense"),
    ],
)
def test_a_bad_call_is_one_sentence(
    start_generator, question_file: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    named = [str(question_file) if argument == "QUESTIONS" else argument for argument in arguments]
    done = run("evaluate", *named, "--generator", start_generator(0.0), "--output", tmp_path / "out")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
