"""Defines what every kind of reward provides: a function that scores a trajectory, and its settings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from pydantic import Field, PositiveInt

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.platform.settings import Section


class RewardBase(Section):
    """The settings that every kind of reward has."""

    # Class variables, because a configuration is checked by them before any reward is built.
    needs_generator: ClassVar[bool] = False
    """Whether it calls the generator service."""
    scores_own_answer: ClassVar[bool] = False
    """Whether it scores the answer that the searcher itself writes."""

    max_in_flight: PositiveInt = Field(default=64, description="Trajectories that are scored at once.")

    @property
    def baselines(self) -> Path | None:
        """The file of naive RAG's results with which the reward compares; None if it compares with nothing."""
        return None

    @property
    def costs(self) -> dict[str, float | str]:
        """What makes rewards of different runs incomparable besides the kind: costs, penalties and modes by name."""
        return {}

    def describe(self) -> str:
        """Describe the reward for the plan of a run, after its kind."""
        return ""


Settings = TypeVar("Settings", bound=RewardBase)


class RewardFunction(ABC, Generic[Settings]):
    """Scores trajectories one at a time."""

    @classmethod
    @abstractmethod
    def build(cls, settings: Settings, generator: GeneratorClient | None, questions: Sequence[Question]) -> Self:
        """Build the function for a run with these questions.

        Raises:
            searchrl.errors.ConfigurationError: it lacks a generator, or its files cannot be used.
        """

    @abstractmethod
    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """Return the reward.

        Raises:
            searchrl.errors.ServiceError: a service behind the reward failed; there is no reward then.
        """

    def start_step(self) -> None:
        """Forget what was remembered for the last training step."""
