"""The numbers of a step: the parts of its rewards, and the warning about a collapse of the policy."""

import pytest

from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Reward
from services.trainer.rollouts.group import Group, Rollout
from services.trainer.rollouts.task_source import PromptGroup
from services.trainer.runs.step_summary import CollapseDetector, summarize_rollouts
from tests.fakes.scripted_worker import trajectory_of


def test_the_mean_of_each_part_of_the_reward_is_reported() -> None:
    outcomes = (Reward(0.5, {"correct": 1.0, "overlong": -0.5}), Reward(0.0, {"correct": 0.0}), InfraFailure("down"))
    rollouts = [Rollout(index, trajectory_of("q"), outcome) for index, outcome in enumerate(outcomes)]
    found = summarize_rollouts([Group(PromptGroup(0, 0, Question("q", "text")), rollouts)])
    assert (found["success"], found["reward_overlong"]) == (0.5, -0.25)
    assert "reward_correct" not in found


def test_a_collapse_is_detected_also_against_the_best_average_before_a_resume() -> None:
    detector = CollapseDetector(window=2, fraction=0.5)
    assert [detector.observe(value) for value in (0.8, 0.8, 0.5, 0.2, 0.2)] == [False, False, False, True, True]
    resumed = CollapseDetector(window=2, fraction=0.5)
    resumed.restore([0.8, 0.8, 0.5])
    assert resumed.observe(0.2) and resumed.best == pytest.approx(0.8)
