"""Publishes weights to an engine, and checks that it serves and samples from them."""

from searchrl.errors import ServiceError
from services.trainer.engines.engine_port import RolloutEngine
from services.trainer.learner.reports import PublishedWeights


class EngineOutOfDate(ServiceError):
    """An engine does not serve the weights it received; continuing would train on the tokens of another policy."""


async def push_weights(engine: RolloutEngine, weights: PublishedWeights) -> None:
    """Load the weights and compare what the engine then reports.

    Raises:
        EngineOutOfDate: the engine reports another version or another fingerprint.
    """
    await engine.load_weights(weights.tensors, weights.version, weights.fingerprint)
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
