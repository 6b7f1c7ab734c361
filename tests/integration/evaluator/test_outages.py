"""Outages, with real processes: a generator that dies, an index that is swapped, and permanently refused questions."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from searchrl.clients.evaluator_client import EvaluatorClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from services.evaluator.records.evaluation_run import EvaluationState
from services.evaluator.store.run_store import RunStore

ROOT = Path(__file__).parents[3]


def evaluate(*arguments: object, module: str = "evaluate") -> list[str]:
    return [sys.executable, "-m", f"services.evaluator.commands.{module}", *map(str, arguments)]


def run(*arguments: object, module: str = "evaluate") -> subprocess.CompletedProcess[str]:
    command = evaluate(*arguments, module=module)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Generators that log their answers; ``stop`` kills the newest one."""
    log = tmp_path / "answers.log"
    monkeypatch.setenv("ANSWER_LOG", str(log))

    class Generators:
        def __init__(self) -> None:
            self.processes: list[subprocess.Popen[str]] = []

        def start(self, seconds: float = 0.0, port: int = 0) -> str:
            command = [sys.executable, "-m", "tests.fakes.generator_server", str(seconds), str(port)]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            self.processes.append(process)
            assert process.stdout is not None
            return f"127.0.0.1:{process.stdout.readline().strip()}"

        def stop(self) -> None:
            end(self.processes[-1])

        def answers(self) -> Counter[str]:
            return Counter(log.read_text().splitlines()) if log.exists() else Counter()

    made = Generators()
    yield made
    for process in made.processes:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def watch_to_end(client: EvaluatorClient, run_id: str) -> pb.EvaluationRun:
    return [view async for view in client.watch_run(run_id)][-1]


def test_no_answer_is_generated_twice_if_the_generator_is_killed_and_restarted(
    generator, question_file: Path, tmp_path: Path
) -> None:
    concurrency = 2
    target = generator.start(0.02)
    arguments = ["--questions", question_file, "--methods", "rag,s3", "--generator", target]
    arguments += ["--output", tmp_path / "out", "--concurrency", concurrency]
    process = subprocess.Popen(evaluate(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while sum(generator.answers().values()) < 30:
        assert process.poll() is None
        time.sleep(0.02)
    generator.stop()
    before = generator.answers()
    generator.start(0.0, int(target.rpartition(":")[2]))
    _, errors = process.communicate(timeout=90)
    code = process.returncode
    while code == 1:  # as a job's next attempt
        code = run(*arguments).returncode
    assert code == 0, errors
    answers = generator.answers()
    assert len(answers) == 120
    twice = [pair for pair, count in answers.items() if count > 1]
    assert len(twice) <= concurrency and set(twice) <= set(before)  # only questions in flight at the kill
    (record,) = RunStore.open_for_reading(tmp_path / "out" / "results.sqlite").runs()
    assert record.state is EvaluationState.FINISHED


def refused(question_file: Path) -> Path:
    rows = [json.loads(line) for line in question_file.read_text().splitlines()]
    for row in rows:
        row["metadata"]["refuse"] = "yes"
    path = question_file.with_name("refused.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_permanent_refusal_ends_the_command_with_one_sentence_and_code_2(
    generator, question_file: Path, tmp_path: Path
) -> None:
    arguments = ["--questions", refused(question_file), "--generator", generator.start()]
    done = run(*arguments, "--methods", "rag", "--output", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "evaluate: 7 of 60 questions of rag were refused permanently" in done.stderr
    assert "Traceback" not in done.stderr
    assert sum(generator.answers().values()) < 40
    baseline = run(*arguments, "--output", tmp_path / "b.json", module="build_baseline")
    assert baseline.returncode == 2 and "were refused permanently" in baseline.stderr
    assert not (tmp_path / "b.json").exists()


def test_controls_that_apply_to_no_question_leave_a_complete_evaluation(
    generator, question_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in question_file.read_text().splitlines()]
    path = tmp_path / "without_gold.jsonl"
    path.write_text("".join(json.dumps({**row, "gold_doc_ids": []}) + "\n" for row in rows))
    arguments = ["--questions", path, "--methods", "rag", "--controls", "--generator", generator.start()]
    done = run(*arguments, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    oracle = report["methods"]["oracle"]
    assert (oracle["answered"], oracle["not_applicable"], oracle["failures"]) == (0, 60, {})
    assert report["provenance"]["generator_model"] == ["fake-reader"]
    assert not [pair for pair in generator.answers() if pair.startswith("oracle")]


def test_an_index_that_is_swapped_meanwhile_stops_a_run_and_a_baseline(
    generator, question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAP_AFTER", "25")
    arguments = ["--questions", question_file, "--generator", generator.start(), "--concurrency", 1]
    done = run(*arguments, "--methods", "rag", "--output", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "the index generation changed during the run, from g1 to g2" in done.stderr
    generator.stop()
    arguments[3] = generator.start()
    baseline = run(*arguments, "--output", tmp_path / "b.json", module="build_baseline")
    assert baseline.returncode == 2, baseline.stderr
    assert "index generation changed" in baseline.stderr
    assert not (tmp_path / "b.json").exists()


async def test_the_service_retries_only_lost_or_refused_questions(
    generator, start_evaluator, question_file: Path
) -> None:
    target = generator.start()
    evaluator = start_evaluator(target, EVALUATOR_RUNS__ATTEMPTS="1", EVALUATOR_RUNS__PASSES="1")
    methods = [pb.MethodSpec(method="rag")]
    async with EvaluatorClient(evaluator.grpc) as client:
        await client.create_run("r1", str(question_file), methods, limit=3)
        view = await watch_to_end(client, "r1")
        assert (view.state, view.reason) == ("finished", "")
        assert {entry.name: list(entry.values) for entry in view.provenance}["index_generation"] == ["g1"]
        await client.create_run("r2", str(refused(question_file)), methods)
        view = await watch_to_end(client, "r2")
        assert (view.state, view.reason) == ("failed", "misconfigured")
        generator.stop()
        await client.create_run("r1", str(question_file), methods, limit=3, retry_failures=True)
        view = await watch_to_end(client, "r1")
        assert view.state == "finished"  # no answer was missing, so the stopped generator is not called
