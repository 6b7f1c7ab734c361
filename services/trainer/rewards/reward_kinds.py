"""Provides the reward functions, one class per kind of reward."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.outcome import Reward
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from searchrl.rewards.baseline_cache import BaselineCache
from searchrl.rewards.gain_beyond_rag import RolloutReward
from searchrl.rewards.search_r1_format import FormatReward, exact_match_reward

MemoKey = tuple[str, tuple[str, ...], tuple[str, ...]]


class RewardFunction(Protocol):
    """Scores one trajectory."""

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """Return the reward.

        Raises:
            searchrl.errors.ServiceError: a service behind the reward failed; there is no reward then.
        """
        ...

    def start_step(self) -> None:
        """Discard what was remembered for the last training step."""
        ...


class GenerationReward:
    """Rewards documents from which the frozen generator answers correctly.

    Equal (question, documents) of one step share one call, also while the first answer is pending. ``baseline`` has the
    questions that naive RAG answers correctly; None if the reward does not compare.
    """

    def __init__(self, generator: GeneratorClient, cost: RolloutReward, baseline: BaselineCache | None = None) -> None:
        self._generator = generator
        self._cost = cost
        self._baseline = baseline
        self._memo: dict[MemoKey, asyncio.Task[bool]] = {}

    def start_step(self) -> None:
        self._memo.clear()

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``."""
        rag_correct = self._rag_correct(question)
        correct = await self._is_correct(question, trajectory.documents)
        return self._cost.score(trajectory, correct, rag_correct)

    def _rag_correct(self, question: Question) -> bool:
        return self._baseline is not None and self._baseline.rag_correct(question.id)

    async def _is_correct(self, question: Question, documents: Sequence[Passage]) -> bool:
        key = (question.generator_text, question.golden_answers, tuple(passage.id for passage in documents))
        task = self._memo.get(key)
        if task is None:
            task = self._memo[key] = asyncio.ensure_future(self._ask(question, documents))
            task.add_done_callback(lambda done: self._forget_failure(key, done))
        return await asyncio.shield(task)  # one caller's cancellation must not cancel the call that others share

    def _forget_failure(self, key: MemoKey, task: asyncio.Task[bool]) -> None:
        # start_step may have cleared the memo meanwhile, and another task may have the key now
        if (task.cancelled() or task.exception() is not None) and self._memo.get(key) is task:
            del self._memo[key]

    async def _ask(self, question: Question, documents: Sequence[Passage]) -> bool:
        answer = await self._generator.answer_from_context(question.generator_text, documents)
        if not answer.text.strip():
            return False
        verdict = await self._generator.judge(
            question.generator_text, answer.text, question.golden_answers, question.choices
        )
        return verdict.correct


class ExactMatchReward:
    """Rewards a searcher whose own answer matches a golden answer exactly. Needs no service."""

    def start_step(self) -> None:
        """Nothing is remembered."""

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``."""
        value = exact_match_reward(trajectory, question.golden_answers, question.choices)
        return Reward(value, {"correct": value})


class SearchR1FormatReward:
    """Rewards answer and format together, as Search-R1 does. Needs no service."""

    def __init__(self, table: FormatReward | None = None) -> None:
        self._table = table or FormatReward()

    def start_step(self) -> None:
        """Nothing is remembered."""

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``."""
        correct = exact_match_reward(trajectory, question.golden_answers, question.choices)
        return Reward(self._table.score(trajectory, question.golden_answers, question.choices), {"correct": correct})
