"""Scores finished trajectories; waits for services that fail, so that an outage never becomes a reward."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from searchrl.agent.types import StopReason
from searchrl.domain.outcome import Outcome, PolicyFailure, Reward, Unscorable
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from searchrl.errors import OUTAGE_KINDS, ServiceError
from searchrl.platform.retry import UNLIMITED_ATTEMPTS, RetryPolicy, longest
from services.trainer.rewards.base import RewardFunction
from services.trainer.rollouts.refusals import raise_if_run_ends

logger = logging.getLogger(__name__)

POLICY_FAILURES = frozenset({StopReason.MALFORMED, StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW})
LONGEST_PAUSE_SECONDS = 30.0
"""Pauses double up to this. A longer one delays rewards after an outage; a shorter one calls failing services more."""


async def _retry_at_once(error: ServiceError) -> None:
    """The default of ``on_outage``: do not wait."""


class RewardScorer:
    """Scores trajectories concurrently.

    A trajectory waits for as long as the services behind its reward are unavailable: its tokens are far more expensive
    than its score, and sampling them again would give the same tokens. Only a refusal ends the attempts.

    Args:
        on_outage: called after every attempt that failed by an outage; may wait until a retry makes sense.
    """

    def __init__(
        self,
        function: RewardFunction[Any],
        *,
        max_in_flight: int = 64,
        pause_seconds: float = 0.5,
        on_failure: Callable[[ServiceError], None] = lambda _error: None,
        on_outage: Callable[[ServiceError], Awaitable[None]] = _retry_at_once,
    ) -> None:
        self._function = function
        self._slots = asyncio.Semaphore(max_in_flight)
        # The clients below have waited as long as a server's Retry-After asked. With the defaults the pauses are 0.5,
        # 1, 2, 4, 8, 16 and then 30 s; ``on_outage`` may wait longer.
        self._retries = RetryPolicy(
            attempts=UNLIMITED_ATTEMPTS,
            first_seconds=pause_seconds,
            max_seconds=LONGEST_PAUSE_SECONDS,
            kinds=OUTAGE_KINDS,
            heeds_retry_after=False,
            uniform=longest,
        )
        self._on_failure = on_failure
        self._on_outage = on_outage

    def start_step(self) -> None:
        """Forget the answers remembered for the last step."""
        self._function.start_step()

    async def score(self, question: Question, trajectory: Trajectory) -> Outcome:
        """Return the outcome, after any number of attempts.

        Raises:
            searchrl.errors.ConfigurationError: a service refuses every reward of this run.
        """
        try:
            reward = await self._retries.run(lambda: self._attempt(question, trajectory), self._on_outage)
        except ServiceError as error:  # a refusal: outages are retried without limit
            logger.warning("the reward of question %s is refused: %s", question.id, error)
            return Unscorable(f"reward: {error.kind}: {error}")
        # Only the name of the outcome differs: the value is the reward function's, and the rollout counts in its group.
        if trajectory.stop_reason in POLICY_FAILURES:
            return PolicyFailure(reward.value, trajectory.stop_reason, reward.parts)
        return reward

    async def _attempt(self, question: Question, trajectory: Trajectory) -> Reward:
        try:
            # The slot is held for one attempt and not during the pauses, so that trajectories in a long pause do not
            # keep others from finding that the services answer again.
            async with self._slots:
                return await self._function.score(question, trajectory)
        except ServiceError as error:
            self._on_failure(error)
            raise_if_run_ends("a reward", error)
            if error.kind in OUTAGE_KINDS:
                logger.warning("the reward of question %s failed and is retried: %s", question.id, error)
            raise
