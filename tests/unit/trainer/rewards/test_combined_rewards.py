"""Rewards that a user names by import path, and sums of several rewards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from searchrl.agent.types import Limits
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory, Turn
from searchrl.errors import ConfigurationError, Unavailable
from services.trainer.metrics import TrainerMetrics
from services.trainer.rewards.imported import ImportedReward, ImportedSettings
from services.trainer.rewards.weighted_sum import WeightedSumReward, WeightedSumSettings
from services.trainer.rollouts.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from services.trainer.runs.service_pins import Services
from services.trainer.settings import RunConfig, load_run_config
from services.trainer.wiring import build_rewards, dump_config
from tests.fakes.small_world_services import SmallWorldSearcher

QUESTION = Question("q", "Who leads it?", ("Ann",))
ANSWERED = Trajectory("q", turns=[Turn("t", "search"), Turn("t", "answer")], answer="ann")
NEEDED = ["model=m", "questions=q.jsonl", "output=runs/first"]
MODULE = """
from searchrl.domain.trajectory import Reward
from searchrl.errors import Unavailable

LIMIT = 3

def brevity(question, trajectory, scale=1.0):
    return scale / len(trajectory.turns)

async def says_ann(question, trajectory):
    correct = float(trajectory.answer == "ann")
    return Reward(correct, {"correct": correct})

class Memory:
    def __init__(self, start):
        self.count = start
    def __call__(self, question, trajectory):
        self.count += 1
        return self.count

class Silent:
    pass

def by_turn(question, trajectory):
    return Reward(1.0, {}, tuple(1.0 for turn in trajectory.turns))

def fails(question, trajectory):
    raise Unavailable("the scorer is down")

def writes(question, trajectory):
    return "good"
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def imported(name: str, **arguments: Any) -> ImportedReward:
    return ImportedReward.build(ImportedSettings(path=f"own_rewards:{name}", arguments=arguments), None, ())


async def test_a_function_is_called_with_question_trajectory_and_arguments() -> None:
    assert (await imported("brevity", scale=3.0).score(QUESTION, ANSWERED)).value == 1.5


async def test_an_async_function_may_return_a_complete_reward() -> None:
    assert await imported("says_ann").score(QUESTION, ANSWERED) == Reward(1.0, {"correct": 1.0})


async def test_a_class_is_created_once_with_the_arguments() -> None:
    reward = imported("Memory", start=5)
    assert [(await reward.score(QUESTION, ANSWERED)).value for _ in range(2)] == [6.0, 7.0]


async def test_an_outage_is_an_error_and_no_reward_and_so_is_another_value() -> None:
    with pytest.raises(Unavailable):
        await imported("fails").score(QUESTION, ANSWERED)
    with pytest.raises(TypeError, match="own_rewards:writes returned str, expected a number or a Reward"):
        await imported("writes").score(QUESTION, ANSWERED)


async def answer_at_once() -> None:
    """The probe of services that always work."""


@pytest.mark.parametrize("kind", ["gspo", "rloo", "reinforce_plus_plus_baseline", "grpo", "ppo", "reinforce_plus_plus"])
async def test_rewards_of_turns_are_refused_by_an_algorithm_that_would_drop_them(kind: str) -> None:
    given = ["reward.kind=imported", "reward.path=own_rewards:by_turn", f"algorithm.kind={kind}"]
    config = load_run_config(None, [*NEEDED, *given])
    metrics = TrainerMetrics(CollectorRegistry())
    breaker = CircuitBreaker(answer_at_once, CircuitBreakerSettings())
    services = Services(SmallWorldSearcher(()), None)
    scorer = build_rewards(config, config.reward, services, (), breaker, metrics, Limits())
    if config.algorithm.credits_turns:
        assert await scorer.score(QUESTION, ANSWERED) == Reward(1.0, {}, (1.0, 1.0))
    else:
        with pytest.raises(ConfigurationError, match=f"algorithm.kind {kind} gives all tokens"):
            await scorer.score(QUESTION, ANSWERED)


@pytest.mark.parametrize(
    ("path", "arguments", "sentence"),
    [
        ("own_rewards", {}, "cannot be imported, expected package.module:name"),
        ("own_rewards:brevty", {}, "cannot be imported, .*brevty"),
        ("no_such_module:f", {}, "cannot be imported, .*no_such_module"),
        ("own_rewards:brevity", {"factor": 2}, "cannot be called .*factor"),
        ("own_rewards:Memory", {}, "cannot be called .*start"),
        ("own_rewards:LIMIT", {}, "cannot be called"),
        ("own_rewards:Silent", {}, "the objects of this class cannot be called"),
    ],
)
def test_a_path_that_is_no_reward_is_refused_before_the_run(
    path: str, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        ImportedSettings(path=path, arguments=arguments).check()


def weighted(**parts: dict[str, Any]) -> WeightedSumSettings:
    return WeightedSumSettings.model_validate({"rewards": parts})


BREVITY = {"weight": 0.5, "reward": {"kind": "imported", "path": "own_rewards:brevity"}}
EXACT = {"weight": 2.0, "reward": {"kind": "exact_match"}}


async def test_a_weighted_sum_adds_its_parts_and_reports_each() -> None:
    reward = WeightedSumReward.build(weighted(short=BREVITY, answer=EXACT), None, ())
    # .5 x 1/2 for two turns, and 2 x 1 for the answer
    found = await reward.score(QUESTION, ANSWERED)
    assert found == Reward(2.25, {"short": 0.25, "answer": 2.0, "correct": 1.0})
    wrong = await reward.score(QUESTION, replace(ANSWERED, answer="bo"))
    assert (wrong.value, wrong.parts["correct"]) == (0.25, 0.0)


async def test_a_part_without_a_reward_leaves_the_sum_without_one() -> None:
    down = {"reward": {"kind": "imported", "path": "own_rewards:fails"}}
    with pytest.raises(Unavailable):
        await WeightedSumReward.build(weighted(answer=EXACT, scorer=down), None, ()).score(QUESTION, ANSWERED)


def test_a_sum_needs_what_its_parts_need() -> None:
    gain = {"reward": {"kind": "gain_beyond_rag", "baseline_file": "b.jsonl", "baseline_top_k": 4}}
    settings = weighted(gain=gain, answer=EXACT)
    assert settings.needs_generator and settings.scores_own_answer
    assert (settings.baselines, settings.naive_top_k) == (Path("b.jsonl"), 4)
    assert settings.costs["answer weight"] == 2.0 and settings.costs["gain gain_mode"] == "utility"
    assert not weighted(answer=EXACT).needs_generator


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "every rollout would be worth 0"),
        ({"a": {**EXACT, "weight": 0.0}}, "every rollout would be worth 0"),
        ({"a": {"reward": {"kind": "exactmatch"}}}, "unknown kind of reward 'exactmatch': did you mean 'exact_match'"),
        ({"a": {"reward": {"kind": "weighted_sum"}}}, "unknown kind of reward 'weighted_sum'"),
        ({"a": {"reward": {"kind": "exact_match", "document_cost": 1}}}, "unknown setting 'document_cost'"),
        ({"a": {"reward": {"kind": "exact_match", "max_in_flight": 2}}}, "max_in_flight of a part has no effect"),
        (
            {name: {"reward": {"kind": "gain_beyond_rag", "baseline_file": f"{name}.jsonl"}} for name in ("a", "b")},
            "different baseline files",
        ),
    ],
)
def test_a_sum_that_cannot_be_computed_is_refused_in_one_sentence(parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        load([f"reward.rewards={parts}"])
    assert "\n" not in str(caught.value)


def load(assignments: list[str]) -> RunConfig:
    return load_run_config(None, [*NEEDED, "services.generator=g:1", "reward.kind=weighted_sum", *assignments])


def test_parts_are_set_one_by_one_and_survive_the_run_folder(tmp_path: Path) -> None:
    config = load(
        [
            "reward.rewards.answer.reward.kind=exact_match",
            "reward.rewards.short.weight=0.1",
            "reward.rewards.short.reward.kind=imported",
            "reward.rewards.short.reward.path=own_rewards:brevity",
        ]
    )
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_run_config(tmp_path / "run.yaml") == config
    assert config.reward.describe() == " of 1 x answer, 0.1 x short"


def test_a_validation_compares_a_part_of_a_sum_with_the_baselines_of_its_own_questions() -> None:
    gain = {"kind": "gain_beyond_rag", "baseline_file": "training.json"}
    config = load(
        [
            f"reward.rewards={ {'gain': {'weight': 2.0, 'reward': gain}, 'answer': EXACT} }",
            "validation.questions=dev.jsonl",
            "validation.baseline_file=dev.json",
        ]
    )
    validated = config.validation_reward
    assert (config.reward.baselines, validated.baselines) == (Path("training.json"), Path("dev.json"))
    assert validated.costs == config.reward.costs
