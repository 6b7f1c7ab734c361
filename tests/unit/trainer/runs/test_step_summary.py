"""The numbers of a step: the parts of its rewards, and the warning about a collapse of the policy."""

import pytest

from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InformationBlock, InfraFailure, Reward, Trajectory
from services.trainer.rollouts.group import Group, Rollout
from services.trainer.rollouts.task_source import PromptGroup
from services.trainer.runs.step_summary import CollapseDetector, summarize_rollouts
from tests.fakes.scripted_worker import trajectory_of

RETRIEVAL = ("answer_in_context", "gold_recall", "selection_precision")


def test_the_mean_of_each_part_of_the_reward_is_reported() -> None:
    outcomes = (Reward(0.5, {"correct": 1.0, "overlong": -0.5}), Reward(0.0, {"correct": 0.0}), InfraFailure("down"))
    rollouts = [Rollout(index, trajectory_of("q"), outcome) for index, outcome in enumerate(outcomes)]
    found = summarize_rollouts([Group(PromptGroup(0, 0, Question("q", "text")), rollouts)])
    assert (found["success"], found["reward_overlong"]) == (0.5, -0.25)
    assert "reward_correct" not in found


def test_a_reward_that_does_not_say_what_is_right_has_no_success() -> None:
    def summarize(*outcomes: Reward) -> dict[str, float]:
        rollouts = [Rollout(index, trajectory_of("q"), outcome) for index, outcome in enumerate(outcomes)]
        return summarize_rollouts([Group(PromptGroup(0, 0, Question("q", "text")), rollouts)])

    assert "success" not in summarize(Reward(1.0), Reward(0.0, {"own": 1.0}))
    # one of two says so
    assert summarize(Reward(1.0), Reward(0.0, {"correct": 1.0}))["success"] == 1.0


def test_what_the_rollouts_found_is_reported_over_those_with_a_reward() -> None:
    passages = [Passage("gold", "t", "Acme is in Oslo."), Passage("other", "t", "Bo sings.")]
    shown = tuple(SearchResult(passage, 1.0, rank) for rank, passage in enumerate(passages, 1))

    def find(*documents: Passage) -> Trajectory:
        found = trajectory_of("q")
        found.blocks, found.documents = [InformationBlock("query", shown, (1,))], documents
        return found

    outcomes = (Reward(1.0), Reward(0.0), Reward(0.0), InfraFailure("down"))
    documents = (passages, passages[1:], [], passages)
    rollouts = [Rollout(i, find(*documents[i]), outcome) for i, outcome in enumerate(outcomes)]
    groups = [Group(PromptGroup(0, 0, Question("q", "text", ("Oslo",), gold_passage_ids=("gold",))), rollouts)]
    found = summarize_rollouts(groups)
    # one of three rollouts has the gold passage with the answer; of the three selected documents one is relevant
    assert [found[name] for name in RETRIEVAL] == pytest.approx([1 / 3] * 3)
    groups[0].prompt = PromptGroup(0, 0, Question("q", "text", ("yes",)))
    assert not set(RETRIEVAL) & set(summarize_rollouts(groups))


def test_each_set_of_a_mixture_has_figures_of_its_own() -> None:
    def group(number: int, source: str, *rewards: float) -> Group:
        rollouts = [
            Rollout(i, trajectory_of("q"), Reward(value, {"correct": value})) for i, value in enumerate(rewards)
        ]
        return Group(PromptGroup(number, 0, Question("q", "text"), source), rollouts)

    found = summarize_rollouts([group(0, "nq", 1.0, 0.0), group(1, "nq", 1.0, 1.0), group(2, "bio", 0.0, 0.0)])
    assert {name: value for name, value in found.items() if name.startswith("source/")} == {
        "source/nq/groups": 2, "source/nq/zero_variance": 0.5, "source/nq/reward": 0.75, "source/nq/success": 0.75,
        "source/bio/groups": 1, "source/bio/zero_variance": 1.0, "source/bio/reward": 0.0, "source/bio/success": 0.0,
    }  # fmt: skip
    plain = summarize_rollouts([group(0, "", 1.0, 0.0)])
    assert not [name for name in plain if name.startswith("source/")]


def test_a_collapse_is_detected_also_against_the_best_average_before_a_resume() -> None:
    detector = CollapseDetector(window=2, fraction=0.5)
    assert [detector.observe(value) for value in (0.8, 0.8, 0.5, 0.2, 0.2)] == [False, False, False, True, True]
    resumed = CollapseDetector(window=2, fraction=0.5)
    resumed.restore([0.8, 0.8, 0.5])
    assert resumed.observe(0.2) and resumed.best == pytest.approx(0.8)
