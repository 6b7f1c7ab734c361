"""Defines the engine that samples a run's tokens, and the checks that it serves the published weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import Field, NonNegativeFloat

from searchrl.agent.types import Generation, Sampling
from searchrl.errors import ServiceError
from searchrl.platform.health import Health
from searchrl.platform.settings import Section
from services.trainer.cluster.placement import Place, RunPlacement
from services.trainer.learner.reports import PublishedWeights


class EngineBase(Section):
    """What the settings of all engines have in common."""

    needs_probe: ClassVar[bool] = False
    """Whether published weights carry the learner's log-probabilities of fixed tokens."""

    # A larger one does not notice that the engine serves other weights; a smaller one ends runs over rounding.
    logprob_tolerance: NonNegativeFloat | None = Field(
        default=0.01, description="Mean difference in nats to the learner that stops a synchronous run; None: no check."
    )

    @property
    def takes_adapter(self) -> bool:
        """Whether the engine is given the learner's adapter alone, instead of complete weights."""
        return False

    def places(self) -> list[Place]:
        """What the engine's actors need of a Ray cluster; nothing, unless it has some."""
        return []


@dataclass(frozen=True, slots=True)
class PushReport:
    """One push of weights: its time, and the bytes that each server received."""

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class EngineContext:
    """What an engine is built with, besides its settings.

    Attributes:
        model: folder that the run starts from.
        folder: where the engine may write, for as long as the run lasts.
        context_tokens: most tokens of a prompt and its answer.
        adapter_rank: of the adapter that the run trains; 0 if it trains every weight.
        placement: of the run's actors in a Ray cluster; None: that of the engine's alone.
        lockstep: results must not depend on the order of requests, if the engine can achieve that.
        on_push: called after each push of weights to servers.
        on_failed_push: called at once for each failed attempt to push weights to a server.
        on_failover: called when a generation continues on another server.
    """

    model: Path
    folder: Path
    context_tokens: int
    adapter_rank: int = 0
    placement: RunPlacement | None = None
    lockstep: bool = False
    health: Health | None = None
    on_push: Callable[[PushReport], None] = lambda _report: None
    on_failed_push: Callable[[], None] = lambda: None
    on_failover: Callable[[], None] = lambda: None


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

    async def start(self) -> None:
        """Return once the engine can load weights.

        Raises:
            searchrl.errors.ConfigurationError: it cannot run, or not with this model.
        """
        ...

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation: ...

    def open_session(self, rollout_id: str) -> None:
        """Announce a rollout that will ask for tokens until ``close_session``."""
        ...

    def close_session(self, rollout_id: str) -> None:
        """Announce that the rollout asks for no more tokens."""
        ...

    async def load_weights(self, weights: PublishedWeights) -> None:
        """Serve these weights from the next batch on.

        Raises:
            searchrl.errors.Conflict: the tensors do not fit or do not have this fingerprint; the old ones stay.
            EngineOutOfDate: too few servers of the engine serve them.
        """
        ...

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        """Log-probability at temperature 1 of ``ids[start:]``, each given everything before it."""
        ...

    async def health(self) -> EngineHealth: ...

    def counters(self) -> EngineCounters: ...

    async def close(self) -> None: ...


class EngineOutOfDate(ServiceError):
    """An engine does not serve the weights it received; continuing would train on the tokens of another policy."""


async def push_weights(engine: RolloutEngine, weights: PublishedWeights) -> None:
    """Load the weights and compare what the engine then reports.

    Raises:
        EngineOutOfDate: the engine reports another version or another fingerprint.
    """
    # The engine is asked afterwards, although ``load_weights`` returned: that it accepted weights does not show which
    # ones it serves. What the report itself cannot show is left to ``check_logprobs``.
    await engine.load_weights(weights)
    health = await engine.health()
    if (health.version, health.fingerprint) != (weights.version, weights.fingerprint):
        raise EngineOutOfDate(
            f"the engine was given version {weights.version} ({weights.fingerprint[:12]}) but serves version "
            f"{health.version} ({health.fingerprint[:12]}): its weights do not arrive"
        )


def check_sampled_version(oldest: int, served: int) -> None:
    """Compare the version of a rollout's oldest token with the one that was served when the rollout started.

    Raises:
        EngineOutOfDate: it is older. Such rollouts would be dropped as stale and restarted forever.
    """
    if oldest < served:
        raise EngineOutOfDate(
            f"the engine samples tokens of version {oldest} although it was given version {served}: "
            "its weights do not arrive"
        )


def check_logprobs(difference: float | None, tolerance: float | None, version: int) -> None:
    """Compare the log-probabilities that the engine reported with the learner's for the same tokens and weights.

    Args:
        difference: mean absolute difference in nats, of a synchronous step; None if it was not measured.

    Raises:
        EngineOutOfDate: more than ``tolerance``: the engine samples from other weights, whatever version it reports.
    """
    if difference is not None and tolerance is not None and difference > tolerance:
        raise EngineOutOfDate(
            f"at version {version} engine and learner differ by {difference:.4f} nats per token, over {tolerance}: "
            "the engine does not sample from the published weights, or with another temperature"
        )
