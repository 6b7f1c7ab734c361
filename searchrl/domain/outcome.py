"""Defines the outcomes of a rollout: scored, failed by the policy, failed by infrastructure, or unscorable."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reward:
    """The rollout was scored. ``parts`` names each reward that went into ``value``."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyFailure:
    """The policy broke the rules; ``value`` is its reward, and the rollout counts in the statistics."""

    value: float
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InfraFailure:
    """A dependency failed. There is no reward, and the rollout is excluded from every statistic."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unscorable:
    """A service rejected the question or its rollout, and would reject it again. There is no reward either."""

    reason: str


Outcome = Reward | PolicyFailure | InfraFailure | Unscorable
NO_REWARD = (InfraFailure, Unscorable)
