"""A new reward: 1 divided by the number of turns."""

from collections.abc import Sequence
from typing import Literal, Self

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from services.trainer.rewards.base import RewardBase, RewardFunction


class BrevitySettings(RewardBase):
    """Fewer turns are better."""

    kind: Literal["brevity"] = "brevity"


class BrevityReward(RewardFunction[BrevitySettings]):
    """Rewards short rollouts."""

    @classmethod
    def build(cls, settings: BrevitySettings, generator: GeneratorClient | None, questions: Sequence[Question]) -> Self:
        return cls()

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        return Reward(1 / max(1, len(trajectory.turns)))
