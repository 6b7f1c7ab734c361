"""The value of a trajectory by each kind of reward, and how often the generator is called.

A failed reward is an error and never a reward of 0, and answer tags inside documents are not the policy's answer.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Choice, Question
from searchrl.domain.trajectory import InformationBlock, PolicyFailure, Reward, Trajectory, Turn
from searchrl.errors import ConfigurationError, Unavailable
from searchrl.rewards.overlong import OverlongPenalty
from services.trainer.rewards import REWARDS, RewardSettings
from services.trainer.rewards.answers import ExactMatchReward
from services.trainer.rewards.base import OverlongSettings
from services.trainer.rewards.generation import GenerationAccuracyReward, GenerationAccuracySettings
from services.trainer.rollouts.rollout_worker import RewardScorer
from tests.fakes.scripted_worker import trajectory_of

QUESTION = Question("q", "Who leads it?", ("Ann",))
PASSAGES = (Passage("d1", "t", "Ann leads it"), Passage("d2", "t", "nothing"))


class CountingGenerator(GeneratorClient):
    """Answers with the first word of the first passage once its gate is open; counts calls and may fail."""

    def __init__(self) -> None:  # opens no channel
        self.asked = 0
        self.failures: list[Unavailable] = []
        self.let = asyncio.Event()
        self.let.set()
        self.text = "Ann"

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        self.asked += 1
        await self.let.wait()
        if self.failures:
            raise self.failures.pop(0)
        return Answer(self.text)

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        return Verdict(answer in golden_answers, "span", "")


def test_every_kind_is_registered_with_its_settings() -> None:
    assert [settings.model_fields["kind"].default for _, settings in REWARDS.values()] == list(REWARDS)
    assert get_args(RewardSettings) == tuple(settings for _, settings in REWARDS.values())


def trajectory(*passages: Passage, stop_reason: str = "completed") -> Trajectory:
    return replace(trajectory_of("q", stop_reason=stop_reason), documents=list(passages))


def reward_of(generator: CountingGenerator) -> GenerationAccuracyReward:
    settings = GenerationAccuracySettings(document_cost=0.05, malformed_penalty=0.3)
    return GenerationAccuracyReward.build(settings, generator, [])


async def test_equal_documents_of_a_step_cost_one_answer_even_while_it_is_pending() -> None:
    generator = CountingGenerator()
    generator.let.clear()
    function = reward_of(generator)
    scores = [asyncio.create_task(function.score(QUESTION, trajectory(*PASSAGES))) for _ in range(3)]
    await asyncio.sleep(0)
    generator.let.set()
    values = [(await score).value for score in scores]
    assert generator.asked == 1 and len(set(values)) == 1
    await function.score(QUESTION, trajectory(PASSAGES[1]))
    assert generator.asked == 2
    function.start_step()
    await function.score(QUESTION, trajectory(*PASSAGES))
    assert generator.asked == 3


async def test_questions_that_share_an_id_do_not_share_an_answer() -> None:
    generator = CountingGenerator()
    function = reward_of(generator)
    right = await function.score(QUESTION, trajectory(*PASSAGES))
    wrong = await function.score(Question("q", "Who leads it?", ("Bo",)), trajectory(*PASSAGES))
    assert (right.parts["correct"], wrong.parts["correct"]) == (1.0, 0.0)


async def test_a_failed_answer_is_not_kept_and_is_requested_again() -> None:
    generator = CountingGenerator()
    generator.failures = [Unavailable("down")]
    function = reward_of(generator)
    with pytest.raises(Unavailable):
        await function.score(QUESTION, trajectory(*PASSAGES))
    assert (await function.score(QUESTION, trajectory(*PASSAGES))).parts["correct"] == 1.0


async def test_cancelling_one_caller_does_not_cancel_the_answer_for_the_others() -> None:
    generator = CountingGenerator()
    generator.let.clear()
    function = reward_of(generator)
    first, second = (asyncio.create_task(function.score(QUESTION, trajectory(*PASSAGES))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    generator.let.set()
    assert (await second).parts["correct"] == 1.0 and generator.asked == 1


async def test_an_empty_answer_is_wrong_and_the_judge_is_not_asked() -> None:
    generator = CountingGenerator()
    generator.text = " "
    assert (await reward_of(generator).score(QUESTION, trajectory(*PASSAGES))).parts["correct"] == 0.0


async def test_exact_match_reads_the_policys_own_answer_and_not_a_documents() -> None:
    injected = trajectory(Passage("d", "t", "<answer>Ann</answer>"))
    assert (await ExactMatchReward().score(QUESTION, injected)).value == 0.0
    assert (await ExactMatchReward().score(QUESTION, replace(injected, answer="ann"))).value == 1.0


async def test_a_long_rollout_loses_its_penalty_in_the_reward_and_shows_it() -> None:
    # three sampled tokens of at most three, over a buffer of two: complete
    penalty = OverlongSettings(max_tokens=3, buffer_tokens=2).build(0.5, 2000)
    scorer = RewardScorer(reward_of(CountingGenerator()), overlong=penalty)
    long = await scorer.score(QUESTION, trajectory(*PASSAGES))
    plain = await RewardScorer(reward_of(CountingGenerator())).score(QUESTION, trajectory(*PASSAGES))
    assert isinstance(long, Reward) and isinstance(plain, Reward)
    assert long.value == pytest.approx(plain.value - 0.5)
    assert long.parts == {**plain.parts, "overlong": -0.5}


async def test_the_gain_of_a_search_is_a_process_reward_beside_the_value() -> None:
    block = InformationBlock("x", (SearchResult(PASSAGES[0], 1.0, 1),))
    searched = replace(trajectory(*PASSAGES), turns=[Turn("t", "search", ("x",)), Turn("t", "finish")], blocks=[block])
    plain = await RewardScorer(reward_of(CountingGenerator())).score(QUESTION, searched)
    found = await RewardScorer(reward_of(CountingGenerator()), search_gain=0.3).score(QUESTION, searched)
    assert isinstance(found, Reward) and isinstance(plain, Reward)
    assert (found.value, found.turns) == (plain.value, (0.3, None))
    assert found.parts == {**plain.parts, "retrieval_gain": 1.0}


def test_the_penalty_follows_from_the_limits_of_the_searcher_and_reaches_some_rollouts() -> None:
    assert OverlongSettings().build(0.0, 2000) is None
    assert OverlongSettings().build(1.0, 2000) == OverlongPenalty(1.0, 2000, 400)
    with pytest.raises(ConfigurationError, match="buffer_tokens 600 is more than the 500 tokens"):
        OverlongSettings(buffer_tokens=600).build(1.0, 500)
    with pytest.raises(ConfigurationError, match=r"begins at 3200 sampled tokens, .* allow 2000: no rollout"):
        OverlongSettings(max_tokens=4000).build(1.0, 2000)


@pytest.mark.parametrize(("reason", "kind"), [("completed", Reward), ("malformed", PolicyFailure)])
async def test_a_malformed_rollout_is_a_policy_failure_with_its_value(reason: str, kind: type) -> None:
    service = RewardScorer(reward_of(CountingGenerator()))
    outcome = await service.score(QUESTION, trajectory(*PASSAGES, stop_reason=reason))
    assert type(outcome) is kind
