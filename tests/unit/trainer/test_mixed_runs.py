"""Runs of a mixture of question sets: their shares, the figures of each set, and a resume with the same bits."""

from pathlib import Path
from typing import Any

import pytest

from searchrl.errors import ConfigurationError
from tests.fakes.small_run import QUESTIONS, SmallRun, run_config, write_questions


def mixed(folder: Path, **weights: float) -> dict[str, Any]:
    """Return the settings of a run with a set of six questions and one of two."""
    files = {"many": write_questions(folder / "many.jsonl", QUESTIONS[:6]),
             "few": write_questions(folder / "few.jsonl", QUESTIONS[6:])}  # fmt: skip
    sets = {name: {"questions": str(files[name]), "weight": weight} for name, weight in weights.items()}
    return {"questions": None, "mixture": sets}


async def test_a_resumed_mixture_draws_the_same_sets_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = mixed(tmp_path, many=2, few=1)
    straight = await SmallRun(tmp_path / "straight", **settings).train()
    # two groups a step, in windows of many, few, many
    assert [line.get("source/many/groups") for line in straight.lines] == [1, 2, 1]
    assert [line.get("source/few/groups") for line in straight.lines] == [1, None, 1]
    await SmallRun(tmp_path / "resumed", steps=1, **settings).train()
    resumed = await SmallRun(tmp_path / "resumed", **settings).train(resume=True)
    assert resumed.fingerprints == straight.fingerprints
    with pytest.raises(ConfigurationError, match=r"its mixture was 1 few \(2\), 2 many \(6\), now it is 1 few"):
        await SmallRun(tmp_path / "resumed", steps=4, **mixed(tmp_path, many=1, few=1)).train(resume=True)


def test_training_questions_are_named_once(tmp_path: Path) -> None:
    settings = mixed(tmp_path, many=1)
    for both in ({"mixture": settings["mixture"]}, {"questions": None}):
        with pytest.raises(ConfigurationError, match="either questions or mixture"):
            run_config(tmp_path, **both)
