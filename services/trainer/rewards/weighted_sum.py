"""A reward that is the weighted sum of several others, each of which is reported by its name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.errors import ConfigurationError, unknown_name
from searchrl.platform.settings import Section, validate
from services.trainer.rewards.base import RewardBase, RewardFunction, add_turns

SHARED = ("max_in_flight", "overlong", "search_gain")
"""Settings that belong to the sum and not to its parts."""


class WeightedReward(Section):
    """One part of the sum."""

    weight: float = Field(default=1.0, description="Factor of this reward.")
    reward: SerializeAsAny[RewardBase] = Field(description="Its settings, with their kind.")

    @field_validator("reward", mode="before")
    @classmethod
    def _read_kind(cls, value: Any) -> Any:
        from services.trainer.rewards import REWARDS  # the registry names the sum as well, so it imports this module

        if not isinstance(value, Mapping):
            return value
        kinds = [kind for kind in REWARDS if kind != "weighted_sum"]
        kind = str(value.get("kind", ""))
        try:
            if kind not in kinds:
                raise ConfigurationError(unknown_name("kind of reward", kind, kinds))
            return validate(REWARDS[kind][1], value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error  # pydantic adds the path of the part

    @model_validator(mode="after")
    def _check_shared(self) -> Self:
        for name in SHARED:
            if getattr(self.reward, name) != type(self.reward).model_fields[name].default:
                raise ValueError(f"{name} of a part has no effect: set reward.{name}")
        return self


class WeightedSumSettings(RewardBase):
    """Several rewards at once."""

    kind: Literal["weighted_sum"] = Field(default="weighted_sum", description="What counts as success.")
    rewards: dict[str, WeightedReward] = Field(
        description="The rewards by a name of your choice: weight, and reward with its kind and settings."
    )

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if not any(part.weight for part in self.rewards.values()):
            raise ValueError("every weight is 0, or there is no reward: every rollout would be worth 0")
        if len({part.baselines for part in self._settings if part.baselines is not None}) > 1:
            raise ValueError("the rewards compare with different baseline files: a run can check only one")
        return self

    @property
    def _settings(self) -> list[RewardBase]:
        return [part.reward for part in self.rewards.values()]

    @property
    def needs_generator(self) -> bool:
        """See ``RewardBase``."""
        return any(settings.needs_generator for settings in self._settings)

    @property
    def scores_own_answer(self) -> bool:
        """See ``RewardBase``."""
        return any(settings.scores_own_answer for settings in self._settings)

    @property
    def baselines(self) -> Path | None:
        """See ``RewardBase``."""
        return next((settings.baselines for settings in self._settings if settings.baselines is not None), None)

    def with_baselines(self, file: Path) -> Self:
        """See ``RewardBase``."""
        parts = {
            name: part.model_copy(update={"reward": part.reward.with_baselines(file)})
            for name, part in self.rewards.items()
            if part.reward.baselines is not None
        }
        return self.model_copy(update={"rewards": {**self.rewards, **parts}})

    @property
    def naive_top_k(self) -> int | None:
        """See ``RewardBase``."""
        return next((settings.naive_top_k for settings in self._settings if settings.naive_top_k is not None), None)

    @property
    def costs(self) -> dict[str, float | str]:
        """See ``RewardBase``."""
        found: dict[str, float | str] = {}
        for name, part in self.rewards.items():
            kind = str(part.reward.model_dump()["kind"])
            found |= {f"{name} weight": part.weight, f"{name} kind": kind}
            found |= {f"{name} {cost}": value for cost, value in part.reward.costs.items()}
        return found

    def describe(self) -> str:
        """See ``RewardBase``."""
        return " of " + ", ".join(f"{part.weight:g} x {name}" for name, part in self.rewards.items())

    def check(self) -> None:
        """See ``RewardBase``."""
        for settings in self._settings:
            settings.check()


class WeightedSumReward(RewardFunction[WeightedSumSettings]):
    """Adds up the values of several rewards."""

    def __init__(self, parts: Mapping[str, tuple[float, RewardFunction[Any]]]) -> None:
        self._parts = parts

    @classmethod
    def build(
        cls, settings: WeightedSumSettings, generator: GeneratorClient | None, questions: Sequence[Question]
    ) -> Self:
        """See ``RewardFunction``."""
        from services.trainer.rewards import REWARDS  # as above

        parts: dict[str, tuple[float, RewardFunction[Any]]] = {}
        for name, part in settings.rewards.items():
            function_class, _ = REWARDS[part.reward.model_dump()["kind"]]
            parts[name] = part.weight, function_class.build(part.reward, generator, questions)
        return cls(parts)

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``; a failure of one part leaves the rollout without a reward."""
        # One after the other: most parts need no service, and those that need one are cached in a step.
        values: dict[str, float] = {}
        turns: tuple[float | None, ...] = ()
        correct: float | None = None
        for name, (weight, function) in self._parts.items():
            found = await function.score(question, trajectory)
            values[name] = weight * found.value
            turns = add_turns(turns, weight, found.turns)
            if correct is None:
                correct = found.parts.get("correct")
        return Reward(sum(values.values()), values if correct is None else {**values, "correct": correct}, turns)

    def start_step(self) -> None:
        """See ``RewardFunction``."""
        for _, function in self._parts.values():
            function.start_step()
