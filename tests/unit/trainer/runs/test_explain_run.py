"""Sentences about a run: who waits for whom, what is lost, what teaches nothing, and how it learns."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.trainer.algorithms import ALGORITHMS
from services.trainer.runs.explain_run import main
from services.trainer.runs.run_events import Rollback
from services.trainer.runs.run_explanation import RunFacts, explain_run
from services.trainer.runs.run_lock import RunLock
from services.trainer.runs.step_report import split_seconds
from tests.fakes.small_run import SmallRun

SETTINGS: dict[str, Any] = {
    "steps": 60,
    "rollouts": {"group_size": 4, "max_staleness": 0},
    "algorithm": {"kind": "grpo"},
    "engine": {"logprob_tolerance": 0.01},
}


def line(step: int, **changed: Any) -> dict[str, Any]:
    """One step of 10 s: 6 for the rollouts, 3 of them the retriever's and 1 the reward's, 3 the update, 1 the rest."""
    values = {
        **{"step": step, "time": 1000.0 + 10 * step, "seconds": 10.0, "rollouts": 8.0, "success": 0.5},
        **{"seconds_rollouts": 6.0, "seconds_retriever": 3.0, "seconds_reward": 1.0, "seconds_update": 3.0},
        **{"seconds_publish": 0.5, "seconds_checkpoint": 0.5, "logprob_mismatch": 1e-6},
    }
    return values | changed


def explain(*lines: dict[str, Any], is_trained: bool | None = True, has_model: bool = False, **settings: Any) -> str:
    last = next((found["time"] for found in reversed(lines) if "time" in found), 0.0)
    facts = RunFacts("runs/first", lines, SETTINGS | settings, is_trained, has_model, now=last + settings.get("age", 5))
    return "\n".join(explain_run(facts))


def test_an_ordinary_run_is_described_by_its_time_and_who_waits() -> None:
    assert explain(line(1), line(2)).splitlines() == [
        "It trains: step 2 of 60 ended 5 s ago.",
        "A step takes 10.0 s (mean of the last 2): retriever 30%, update 30%, rollouts 20%, reward 10%, push 5%, "
        "checkpoint 5%.",
        "The learner waits for rollouts 60% of the time, above all for the retriever; more replicas, its caches or a "
        "faster index shorten it.",
    ]
    assert sum(split_seconds(line(1)).values()) == 10.0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seconds_reward": 5.0, "seconds_retriever": 0.5}, "above all for the frozen LLM of the reward"),
        ({"seconds_reward": 0.5, "seconds_retriever": 0.5}, "above all for the engine that samples them"),
        ({"seconds_update": 30.0}, "The engine waits for the learner 81% of the time; with rollouts.max_staleness=1"),
        ({"seconds_validation": 4.0}, "waits for the validation beside it 29% of the time; fewer questions"),
        # 1 of the 2 groups of each step, by 8 rollouts in groups of 4
        (
            {"zero_variance_groups": 1.0},
            "50% of the groups had equal rewards and taught nothing",
        ),
        ({"zero_variance_groups": 1.0, "success": 0.1}, "their questions are too hard."),
        ({"zero_variance_groups": 1.0, "success": 0.9}, "their questions are too easy."),
        # 3 of 5 groups of each step
        ({"replaced_groups": 3.0}, "60% of the sampled groups had equal rewards and were replaced by others."),
        (
            {"infra_failures": 1.0},
            "2 of 16 rollouts (12.5%) failed because services were unavailable",
        ),
        ({"unscorable": 2.0}, "4 of 16 rollouts (25.0%) were refused by services"),
        ({"skipped_steps": 1.0, "value_skipped_steps": 2.0}, "6 optimizer steps were skipped"),
        ({"logprob_mismatch": 0.008}, "Engine and learner differ by up to 0.008 nats per token; above 0.01"),
    ],
)
def test_what_is_unusual_has_a_sentence_and_is_not_mentioned_otherwise(changed: Any, sentence: str) -> None:
    assert sentence in explain(line(1, **changed), line(2, **changed))
    assert sentence not in explain(line(1), line(2))


def test_what_an_algorithm_or_a_schedule_does_not_need_is_not_criticized() -> None:
    for name, (_, settings_type) in ALGORITHMS.items():
        settings = settings_type()
        text = explain(line(1, zero_variance_groups=2.0), algorithm=settings.model_dump())
        assert ("equal rewards" in text) == settings.compares_rollouts, name
    without_baseline = {"kind": "reinforce", "advantage": "reward"}
    assert "equal rewards" not in explain(line(1, zero_variance_groups=2.0), algorithm=without_baseline)
    rollouts = {"group_size": 4, "max_staleness": 2}
    slow = line(1, seconds_update=30.0, logprob_mismatch=0.5)
    text = explain(slow, rollouts=rollouts)
    assert "The engine waits" not in text and "differ by" not in text


def test_the_longest_step_is_explained_by_its_longest_part_and_its_failures() -> None:
    slow = line(3, seconds=95.0, seconds_rollouts=90.0, infra_failures=5.0)
    text = explain(line(1), line(2), slow, line(4))
    # 90 s of rollouts less 3 s of the retriever and 1 s of the reward
    expected = "The longest was step 3 with 95.0 s, of which rollouts took 86.0 s, and 5 of its rollouts failed"
    assert expected in text and "One step was more than 3 times as long as usual" in text
    assert "as long as usual" not in explain(line(1), line(2), line(3, seconds=25.0))


def test_rollbacks_are_described_by_their_causes_and_by_what_they_cost() -> None:
    def rollback(cause: str, number: int) -> Rollback:
        return Rollback(cause, 4 * number, number, 0.5**number, 1e-3 * 0.5**number, 5 * number, 6, 0.0)

    def explain_rollbacks(*rollbacks: Rollback) -> str:
        events = [found.to_line() for found in rollbacks]
        settings = {"self_repair": {"rollbacks": 2}}
        return "\n".join(explain_run(RunFacts("runs/first", [line(1)], settings, True, False, 1015.0, events)))

    first, second = rollback("gradients were not finite 3 times in a row", 1), rollback("the reward was low", 2)
    assert (
        "It was rolled back once, of at most 2. The last time at step 4, because gradients were not finite 3 times in "
        "a row: it returned to step 1 with a learning rate of 0.0005, and lost 6 groups."
    ) in explain_rollbacks(first)
    text = explain_rollbacks(first, second)
    assert (
        "rolled back 2 times, and the next trouble ends it. The last time at step 8, because the reward was low" in text
    )
    assert "The first time it was rolled back because gradients were not finite 3 times in a row." in text
    assert "rolled back" not in explain_rollbacks()


def test_success_and_its_collapse_are_described_by_windows() -> None:
    # 0.2, 0.6 and 0.1 over ten steps each; the best ten end with step 20
    steps = [line(step, success=(0.2, 0.6, 0.1)[(step - 1) // 10]) for step in range(1, 31)]
    assert "Success is 0.10 over the last 10 steps, after 0.60 over the 10 before and 0.20 over the first." in explain(
        *steps
    )
    steps[-1]["collapse_warning"] = True
    text = explain(*steps)
    assert "collapses: success is 0.10 over the last 10 steps, and was 0.60 over the 10 steps to step 20" in text
    assert "Success is" not in explain(*steps[:19])


def test_a_success_that_the_reward_does_not_tell_is_no_success_of_zero() -> None:
    untold = [line(step, zero_variance_groups=1.0) for step in range(1, 31)]
    for found in untold:
        del found["success"]
    text = explain(*untold)
    assert "their questions are too easy or too hard." in text and "Success" not in text
    assert "too easy or too hard" in explain(untold[0], line(2, success=0.5), untold[2])


def test_validations_are_no_steps_and_have_their_own_sentence() -> None:
    validation = {
        **{"step": 2, "validation_set": "abc", "validation_best_step": 1},
        **{"validation_best": 0.61, "validation_without_improvement": 3},
    }
    text = explain(line(1), line(2), validation)
    assert "The best validation is that of step 1 (0.610), and 3 since then were not better." in text
    assert "step 2 of 60 ended 5 s ago" in text and "mean of the last 2" in text


def test_the_state_is_that_of_the_process_and_its_last_step() -> None:
    assert "No step of runs/first has ended yet: it is starting" in explain()
    assert "no process trains it" in explain(is_trained=False)
    stopped = explain(line(7), is_trained=False)
    assert "step 7 of 60 was the last, 5 s ago. It continues with: searchrl train --resume runs/first" in stopped
    assert "It has ended with step 60 of 60; its model is in runs/first/final." in explain(line(60), has_model=True)
    assert "It stalls: step 7 of 60 ended 10 min ago, and a step usually takes 10.0 s" in explain(line(7), age=600)
    assert "It trains" in explain(line(7), age=50)  # short of a minute
    assert "whether a process trains it is unknown here" in explain(line(7), is_trained=None, age=600)


async def test_a_real_run_is_explained_from_its_folder_without_a_change(tmp_path: Path) -> None:
    run = await SmallRun(tmp_path, steps=1).train()
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    command = [sys.executable, "-m", "searchrl.cli.main", "runs", "explain", str(run.folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    first, second, *_ = found.stdout.splitlines()
    assert first == f"It has ended with step 1 of 1; its model is in {run.folder}/final."
    assert second.startswith("A step takes ") and "update " in second
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_a_run_that_a_process_holds_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line(1)) + "\n" + json.dumps(line(2))[:20])  # being written
    lock = RunLock(tmp_path)
    assert lock.try_acquire() and main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("It stalls: step 1 of 60 ended ")  # in the year 1970
    lock.release()
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("No process trains it: step 1 of 60 was the last")


def test_a_folder_that_is_no_such_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no run: it has no run.yaml" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("training: {}\n")
    assert main([str(tmp_path)]) == 2
    assert "is no run that trains from rollouts" in capsys.readouterr().err
