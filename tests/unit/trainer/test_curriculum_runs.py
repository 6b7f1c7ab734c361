"""A run with a curriculum: questions rest, and a resumed run lets the same ones rest and ends with the same bits."""

from pathlib import Path
from typing import Any

from tests.fakes.small_run import QUESTIONS, SmallRun, write_questions


async def test_a_resumed_run_lets_the_same_questions_rest_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", QUESTIONS[:4])
    # Pairs of rollouts are often both right or both wrong, so that most of the four questions rest at some time.
    settings: dict[str, Any] = {
        "questions": str(questions), "curriculum": {"window": 1, "min_active": 0.25}, "rollouts__group_size": 2,
    }  # fmt: skip
    straight = await SmallRun(tmp_path / "straight", steps=8, **settings).train()
    resting = straight.column("resting_questions")
    assert max(resting) > 0
    await SmallRun(tmp_path / "resumed", steps=5, **settings).train()
    resumed = await SmallRun(tmp_path / "resumed", steps=8, **settings).train(resume=True)
    assert resumed.column("resting_questions") == resting
    assert resumed.fingerprints == straight.fingerprints
