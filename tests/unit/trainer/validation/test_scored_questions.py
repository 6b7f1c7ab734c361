"""Rows of a validation survive its process, and belong to one set of weights and questions."""

from pathlib import Path

from searchrl.domain.trajectory import PolicyFailure, Reward, Trajectory, Unscorable
from services.trainer.validation.scored_questions import ScoredQuestion, ScoredQuestions

MADE_BY = {"weights": "abc", "questions": "q"}


def row(name: str, correct: float) -> ScoredQuestion:
    return ScoredQuestion.of(name, Reward(correct - 0.1, {"correct": correct}), Trajectory(name))


def test_rows_are_found_again_without_one_that_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "step_000000.jsonl"
    first = ScoredQuestions.open(path, MADE_BY)
    first.add(row("a", 1.0))
    path.write_text(path.read_text() + '{"question_id": "b", "outc')
    second = ScoredQuestions.open(path, MADE_BY)
    assert second.rows == {"a": row("a", 1.0)}
    second.add(row("b", 0.0))
    assert ScoredQuestions.open(path, MADE_BY).rows.keys() == {"a", "b"}


def test_rows_of_other_weights_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "step_000000.jsonl"
    ScoredQuestions.open(path, MADE_BY).add(row("a", 1.0))
    assert ScoredQuestions.open(path, {**MADE_BY, "weights": "other"}).rows == {}


def test_a_damaged_file_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "step_000000.jsonl"
    path.write_bytes(b"\0\0\0\n")
    assert ScoredQuestions.open(path, MADE_BY).rows == {}


def test_a_refused_question_has_no_value_and_a_failed_policy_has_one(tmp_path: Path) -> None:
    scored = ScoredQuestions.open(tmp_path / "step_000000.jsonl", MADE_BY)
    scored.add(row("right", 1.0))
    scored.add(ScoredQuestion.of("failed", PolicyFailure(-0.3, "malformed", {"correct": 0.0}), Trajectory("failed")))
    scored.add(ScoredQuestion.of("refused", Unscorable("too large"), None))
    summary = scored.summarize()
    assert (summary["questions"], summary["unscorable"]) == (2, 1)
    assert (summary["success"], round(summary["reward"], 6)) == (0.5, 0.3)  # (1 + 0) / 2 and (0.9 - 0.3) / 2
    assert scored.values("success") == {"right": 1.0, "failed": 0.0}
