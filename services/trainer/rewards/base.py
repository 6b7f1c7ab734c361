"""Defines what every kind of reward provides: a function that scores a trajectory, and its settings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Generic, Self, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from searchrl.rewards.overlong import OverlongPenalty


class OverlongSettings(Section):
    """The penalty on rollouts that come close to the number of tokens that they may sample."""

    penalty: NonNegativeFloat | None = Field(
        default=None, description="Subtracted at max_tokens; None: 1 with algorithm.kind dapo, else 0."
    )
    max_tokens: PositiveInt | None = Field(
        default=None, description="Sampled tokens at which the penalty is complete; None: the most of the searcher."
    )
    # DAPO: 4,096 of 20,480 tokens
    buffer_tokens: PositiveInt | None = Field(
        default=None, description="Tokens before that over which it rises; None: a fifth of max_tokens."
    )

    def build(self, penalty: float, max_sampled_tokens: int) -> OverlongPenalty | None:
        """Return the penalty of a searcher that may sample so many tokens; None if there is none.

        Raises:
            searchrl.errors.ConfigurationError: it would reach every rollout, or none.
        """
        if not penalty:
            return None
        limit = self.max_tokens or max_sampled_tokens
        buffer = self.buffer_tokens or max(1, limit // 5)
        if buffer > limit:
            raise ConfigurationError(
                f"reward.overlong.buffer_tokens {buffer} is more than the {limit} tokens at which the penalty is "
                "complete: every rollout would be penalized"
            )
        if limit - buffer >= max_sampled_tokens:
            raise ConfigurationError(
                f"reward.overlong begins at {limit - buffer} sampled tokens, and the limits in searcher.json allow "
                f"{max_sampled_tokens}: no rollout would be penalized"
            )
        return OverlongPenalty(penalty, limit, buffer)


class RewardBase(Section):
    """The settings that every kind of reward has."""

    max_in_flight: PositiveInt = Field(default=64, description="Trajectories that are scored at once.")
    # The gains of a rollout add up to 1 at most: with a weight below 1, finding the evidence is worth less than a
    # success.
    search_gain: NonNegativeFloat = Field(
        default=0.0,
        description="Weight of what each search adds to the evidence, a process reward of its turn; with the advantage "
        "group_std any weight above 0 counts the same.",
    )
    overlong: OverlongSettings = Field(default=OverlongSettings(), description="Penalty on long rollouts.")

    # A configuration is checked by these before any reward is built.
    @property
    def needs_generator(self) -> bool:
        """Whether it calls the generator service."""
        return False

    @property
    def scores_own_answer(self) -> bool:
        """Whether it scores the answer that the searcher itself writes."""
        return False

    @property
    def baselines(self) -> Path | None:
        """The file of naive RAG's results with which the reward compares; None if it compares with nothing."""
        return None

    def with_baselines(self, file: Path) -> Self:
        """Return the same reward, compared with the results in another file."""
        raise NotImplementedError(f"{type(self).__name__} compares with nothing")

    @property
    def naive_top_k(self) -> int | None:
        """Number of passages that naive RAG must have read; None: as many as the searcher is shown first."""
        return None

    @property
    def costs(self) -> dict[str, float | str]:
        """What makes rewards of different runs incomparable besides the kind: costs, penalties and modes by name."""
        return {}

    def describe(self) -> str:
        """Describe the reward for the plan of a run, after its kind."""
        return ""

    def check(self) -> None:
        """Check before the run starts what needs more than the settings themselves.

        Raises:
            searchrl.errors.ConfigurationError: the reward cannot be computed.
        """


def add_turns(
    turns: tuple[float | None, ...], weight: float, more: tuple[float | None, ...]
) -> tuple[float | None, ...]:
    """Add weighted process rewards turn by turn; a turn has none only if neither has one."""
    return tuple(
        None if first is None and second is None else (first or 0.0) + weight * (second or 0.0)
        for first, second in zip_longest(turns, more)
    )


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
