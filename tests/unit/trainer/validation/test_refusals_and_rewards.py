"""A validation ends a run whose reward lacks what its metric needs, and one with too many refusals, also if resumed."""

from pathlib import Path
from typing import Any

import pytest

from searchrl.domain.trajectory import Reward, Trajectory, Unscorable
from searchrl.errors import ConfigurationError, TooLarge
from services.trainer.rollouts.group import Rollout
from services.trainer.rollouts.refusals import LeftOutQuestions
from services.trainer.rollouts.task_source import PromptGroup
from services.trainer.validation.questions import fingerprint_question_set
from services.trainer.validation.scored_questions import ScoredQuestions
from services.trainer.validation.validator import _Validation
from tests.fakes.small_run import QUESTIONS, WORLD, SmallRun, write_questions
from tests.fakes.small_world_services import SmallWorldGenerator

HELD_OUT = [question for question in WORLD.questions(24, "train") if question not in QUESTIONS][:5]


def validated(folder: Path, **settings: Any) -> dict[str, Any]:
    questions = str(write_questions(folder / "held-out.jsonl", tuple(HELD_OUT)))
    few = {"rollouts__groups_per_step": 1, "rollouts__group_size": 2}
    return {"steps": 1, "validation__questions": questions, **few, **settings}


def count_turns(_question: object, trajectory: Trajectory) -> float:
    """A reward of a user's own, which does not say whether an answer is right."""
    return 1 / max(1, len(trajectory.turns))


async def test_a_reward_that_does_not_say_what_is_right_needs_the_metric_reward(tmp_path: Path) -> None:
    own = {"reward": {"kind": "imported", "path": f"{__name__}:count_turns"}}
    refused = SmallRun(tmp_path, **validated(tmp_path, **own))
    with pytest.raises(ConfigurationError, match=r"validation\.metric is success, and .* no part 'correct'"):
        await refused.train()
    assert refused.validations == [] and refused.lines == []
    run = await SmallRun(tmp_path, **validated(tmp_path, validation__metric="reward", **own)).train(resume=True)
    assert [line["validation_reward"] > 0 for line in run.validations] == [True, True]
    assert not [line for line in run.validations if "validation_success" in line]
    assert not [line for line in run.lines if "success" in line or line["collapse_warning"]]
    with pytest.raises(ConfigurationError, match=r"validation\.metric is success"):  # of rows that were kept, too
        await SmallRun(tmp_path, **validated(tmp_path, **own)).train(resume=True)


class RefusingGenerator(SmallWorldGenerator):
    """Refuses all but the last of the validation questions."""

    async def answer_from_context(self, question: str, passages: Any) -> Any:
        if question in {held_out.generator_text for held_out in HELD_OUT[:4]}:
            raise TooLarge("the documents are over the LLM's context")
        return await super().answer_from_context(question, passages)


async def test_a_resumed_run_finds_the_same_refusals_too_many(tmp_path: Path) -> None:
    settings = validated(tmp_path, validation__in_flight=1, rollouts__unscorable_in_a_row=5)
    for resume in (False, True):
        run = SmallRun(tmp_path, generator=RefusingGenerator(), **settings)
        with pytest.raises(ConfigurationError, match="4 questions cannot be scored, more than the 3"):
            await run.train(resume)
    resumed = await SmallRun(tmp_path, **settings).train(resume=True)  # the service was repaired
    assert [line["validation_unscorable"] for line in resumed.validations] == [3, 0]


def refuse(validation: _Validation, number: int) -> None:
    prompt = PromptGroup(number, 0, HELD_OUT[number])
    validation.add(prompt, Rollout(0, None, Unscorable("too large")))


def test_refusals_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    def continued() -> _Validation:
        scored = ScoredQuestions.open(tmp_path / "step_000000.jsonl", {})
        found = _Validation(0, scored, LeftOutQuestions(100, 0.5, 3), needs_correct=True)
        found.restore()
        return found

    first = continued()
    refuse(first, 0)
    prompt = PromptGroup(1, 0, HELD_OUT[1])
    first.add(prompt, Rollout(0, Trajectory(prompt.question.id), Reward(1.0, {"correct": 1.0})))
    refuse(first, 2)
    refuse(continued(), 3)
    with pytest.raises(ConfigurationError, match="3 questions in a row cannot be scored"):
        refuse(continued(), 4)


def test_validations_against_other_baselines_are_of_another_set(tmp_path: Path) -> None:
    file = tmp_path / "baselines.json"
    found = [fingerprint_question_set(HELD_OUT, None)]
    for content in ("a", "b", "a"):
        file.write_text(content)
        found.append(fingerprint_question_set(HELD_OUT, file))
    assert len(set(found)) == 3 and found[1] == found[3]
    assert fingerprint_question_set(HELD_OUT[:4], file) != found[3]
    with pytest.raises(ConfigurationError, match="cannot be read"):
        fingerprint_question_set(HELD_OUT, tmp_path / "missing")
