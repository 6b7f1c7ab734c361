"""The ways in which a rollout ends, never mixed: scored, failed by the policy, failed by infrastructure, unscorable."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reward:
    """The rollout was scored. ``parts`` names each reward that went into ``value``."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyFailure:
    """The policy broke the rules; the defined ``value`` is its reward and it stays in the statistics."""

    value: float
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InfraFailure:
    """A dependency failed. There is no reward, and the rollout leaves every statistic."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unscorable:
    """A service refused the question or what came of it, and would refuse it again. There is no reward either."""

    reason: str


Outcome = Reward | PolicyFailure | InfraFailure | Unscorable
NO_REWARD = (InfraFailure, Unscorable)
