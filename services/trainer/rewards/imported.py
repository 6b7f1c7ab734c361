"""Rewards that a user writes: a function, or a class whose objects are called, named by its import path."""

import importlib
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, Self, cast

from pydantic import Field

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.errors import ConfigurationError
from services.trainer.rewards.base import RewardBase, RewardFunction

Scored = float | Reward
Score = Callable[[Question, Trajectory], Scored | Awaitable[Scored]]


class ImportedSettings(RewardBase):
    """What a function of the user's returns for a question and a trajectory."""

    kind: Literal["imported"] = Field(default="imported", description="What counts as success.")
    # The module must be importable: installed, or in a folder of PYTHONPATH.
    path: str = Field(description="The function or class, as package.module:name.")
    arguments: dict[str, Any] = Field(
        default={}, description="Keyword arguments: of each call of a function, or of a class when it is created."
    )

    @property
    def costs(self) -> dict[str, float | str]:
        """See ``RewardBase``."""
        return {"path": self.path, "arguments": json.dumps(self.arguments, sort_keys=True)}

    def describe(self) -> str:
        """See ``RewardBase``."""
        return f" {self.path}"

    def check(self) -> None:
        """See ``RewardBase``."""
        found = self._import()
        try:
            if inspect.isclass(found):
                inspect.signature(found).bind(**self.arguments)
                # that of the class: a class without one would answer with the call that creates its objects
                call = next(vars(base)["__call__"] for base in found.__mro__ if "__call__" in vars(base))
                inspect.signature(call).bind("self", "question", "trajectory")
            else:
                inspect.signature(found).bind("question", "trajectory", **self.arguments)
        except StopIteration as error:
            raise ConfigurationError(f"reward.path {self.path}: the objects of this class cannot be called") from error
        except TypeError as error:
            raise ConfigurationError(
                f"reward.path {self.path} cannot be called with a question, a trajectory and reward.arguments: {error}"
            ) from error

    def load(self) -> Score:
        """Return what is called for each trajectory.

        Raises:
            ConfigurationError: there is nothing of this name, or it does not take these arguments.
        """
        self.check()
        found = self._import()
        return cast(Score, found(**self.arguments)) if inspect.isclass(found) else partial(found, **self.arguments)

    def _import(self) -> Any:
        module_name, _, name = self.path.partition(":")
        try:
            return getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"reward.path {self.path} cannot be imported, expected package.module:name: {error}"
            ) from error


class ImportedReward(RewardFunction[ImportedSettings]):
    """Calls the user's function, plain or ``async``, and takes a number or a complete reward from it."""

    def __init__(self, score: Score, path: str) -> None:
        self._score = score
        self._path = path

    @classmethod
    def build(
        cls, settings: ImportedSettings, generator: GeneratorClient | None, questions: Sequence[Question]
    ) -> Self:
        """See ``RewardFunction``."""
        return cls(settings.load(), settings.path)

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``.

        Raises:
            TypeError: the function returned something else than a number or a reward.
        """
        found = self._score(question, trajectory)
        value = await found if inspect.isawaitable(found) else found
        if isinstance(value, Reward):
            return value
        if isinstance(value, bool | int | float):
            return Reward(float(value))
        raise TypeError(f"reward.path {self._path} returned {type(value).__name__}, expected a number or a Reward")
