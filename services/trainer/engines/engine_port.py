"""The interface of the engine that samples the tokens of a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from searchrl.agent.types import Generation, Sampling


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What an engine reports about itself.

    Attributes:
        version, fingerprint: the policy version it serves and the SHA-256 of its weights.
        ready: False once it refuses all requests, because it is broken or closed.
        running: requests that decode now.
    """

    version: int
    fingerprint: str
    ready: bool = True
    running: int = 0


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Totals since the engine started, and the number of requests that wait now."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    sampled_tokens: int = 0
    decode_seconds: float = 0.0
    waiting: int = 0


class RolloutEngine(Protocol):
    """A policy whose weights can be replaced."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation: ...

    def open_session(self, rollout_id: str) -> None:
        """Announce a rollout that will ask for tokens until ``close_session``."""
        ...

    def close_session(self, rollout_id: str) -> None:
        """Announce that the rollout asks for no more tokens."""
        ...

    async def load_weights(self, tensors: Mapping[str, Tensor], version: int, fingerprint: str) -> None:
        """Serve these weights from the next batch on.

        Raises:
            searchrl.errors.Conflict: the tensors do not fit or do not have this fingerprint; the old ones stay.
        """
        ...

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        """Log-probability at temperature 1 of ``ids[start:]``, each given everything before it."""
        ...

    async def health(self) -> EngineHealth: ...

    def counters(self) -> EngineCounters: ...

    async def close(self) -> None: ...
