"""The line of a step in the log, what its time was spent on, and the trajectories that are shown of it."""

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Outcome, Reward, Trajectory, Turn
from services.trainer.rollouts.group import Group, Rollout
from services.trainer.rollouts.task_source import PromptGroup
from services.trainer.runs.step_report import CELL_CHARACTERS, StepProgress, choose_samples, split_waiting


def rollout(index: int, outcome: Outcome, *turns: Turn, seconds: float = 0.0) -> Rollout:
    passage = Passage("p1", "A title", "text")
    trajectory = Trajectory("q", turns=list(turns), documents=(passage,), answer=f"answer {index}")
    return Rollout(index, trajectory, outcome, reward_seconds=seconds)


def group(number: int, *rollouts: Rollout) -> Group:
    return Group(PromptGroup(number, 0, Question(f"q{number}", f"Question {number}?")), list(rollouts))


def test_the_wait_is_divided_by_what_the_rollouts_did_in_total() -> None:
    turns = Turn("t", "search", generate_seconds=3.0, search_seconds=1.0), Turn("t", "finish", generate_seconds=2.0)
    lost = Rollout(1, None, InfraFailure("down"), reward_seconds=0.0)
    groups = [group(0, rollout(0, Reward(1.0), *turns, seconds=2.0), lost)]
    # sampling 5, searching 1, scoring 2: an eighth and a quarter of the 16 s that the step waited
    assert split_waiting(16.0, groups) == {"retriever": 2.0, "reward": 4.0}
    assert split_waiting(16.0, [group(0, lost)]) == {"retriever": 0.0, "reward": 0.0}


def test_a_line_says_where_the_time_went_and_when_the_run_will_end() -> None:
    line = {
        "step": 10, "reward": 0.41234, "success": 0.5, "seconds": 24.0, "seconds_rollouts": 16.0,
        "seconds_retriever": 2.0, "seconds_reward": 4.0, "seconds_update": 6.0, "seconds_publish": 0.5,
        "seconds_checkpoint": 1.25,
    }  # fmt: skip
    progress = StepProgress(100)
    assert progress.describe(line) == (
        "step 10 of 100: reward 0.412, success 0.500, 24.0 s (rollouts 10.0, retriever 2.0, reward 4.0, update 6.0, "
        "push 0.5, checkpoint 1.2), 36 min left"  # 90 steps of 24 s
    )
    # a step that waited for an outage does not move the median: 24, 24 and 3600 s
    progress.describe({**line, "step": 11})
    assert progress.describe({**line, "step": 12, "seconds": 3600.0}).endswith(" 35 min left")
    assert StepProgress(1000).describe({**line, "seconds": 20.0}).endswith(" 5 h 30 min left")
    assert StepProgress(11).describe({**line, "seconds": 20.0}).endswith(" 20 s left")
    assert "no rewards" in StepProgress(11).describe({"step": 1, "seconds": 1.0})


def test_of_each_group_the_best_and_the_worst_trajectory_are_shown() -> None:
    rewards = (0.5, 1.0, 0.0)
    first = group(0, *(rollout(index, Reward(value), Turn("text", "finish")) for index, value in enumerate(rewards)))
    failed = rollout(0, InfraFailure("down"), Turn("x" * (CELL_CHARACTERS + 1), "search"))
    second = group(1, failed, Rollout(1, None, InfraFailure("down")))
    shown = choose_samples([first, second, first], 4)
    assert [(sample.question, sample.reward, sample.answer) for sample in shown] == [
        ("Question 0?", 1.0, "answer 1"), ("Question 0?", 0.0, "answer 2"), ("Question 1?", None, "answer 0"),
        ("Question 0?", 1.0, "answer 1"),
    ]  # fmt: skip
    assert shown[0].documents == ("A title [p1]",) and shown[0].outcome == "scored"
    assert shown[2].outcome == "InfraFailure: down" and shown[2].turns == ("x" * CELL_CHARACTERS + " ...",)
    assert choose_samples([first], 0) == ()
