"""Rewards of the searcher's own answer, which need no service: exact match, alone or with Search-R1's format."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.rewards.search_r1_format import FormatReward, exact_match_reward
from services.trainer.rewards.base import RewardBase, RewardFunction


class ExactMatchSettings(RewardBase):
    """1 if the searcher's own answer equals a golden answer, else 0."""

    kind: Literal["exact_match"] = Field(default="exact_match", description="What counts as success.")

    @property
    def scores_own_answer(self) -> bool:
        """See ``RewardBase``."""
        return True


class ExactMatchReward(RewardFunction[ExactMatchSettings]):
    """Rewards a searcher whose own answer matches a golden answer exactly."""

    @classmethod
    def build(
        cls, settings: ExactMatchSettings, generator: GeneratorClient | None, questions: Sequence[Question]
    ) -> Self:
        """See ``RewardFunction``."""
        return cls()

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``."""
        value = exact_match_reward(trajectory, question.golden_answers, question.choices)
        # The success rate of a step is the mean of the part named correct, whatever the kind of reward.
        return Reward(value, {"correct": value})


class SearchR1FormatSettings(RewardBase):
    """The table of answer and format of Search-R1 (2503.09516)."""

    kind: Literal["search_r1_format"] = Field(default="search_r1_format", description="What counts as success.")

    @property
    def scores_own_answer(self) -> bool:
        """See ``RewardBase``."""
        return True


class SearchR1FormatReward(RewardFunction[SearchR1FormatSettings]):
    """Rewards answer and format together, as Search-R1 does."""

    def __init__(self) -> None:
        self._table = FormatReward()

    @classmethod
    def build(
        cls, settings: SearchR1FormatSettings, generator: GeneratorClient | None, questions: Sequence[Question]
    ) -> Self:
        """See ``RewardFunction``."""
        return cls()

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``."""
        correct = exact_match_reward(trajectory, question.golden_answers, question.choices)
        return Reward(self._table.score(trajectory, question.golden_answers, question.choices), {"correct": correct})
