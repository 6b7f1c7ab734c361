"""Was a rollout scored, failed by the policy, or failed by infrastructure?"""

import asyncio
import logging
from collections.abc import Callable

from searchrl.agent.stop_reason import StopReason
from searchrl.domain.outcome import InfraFailure, Outcome, PolicyFailure
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from searchrl.errors import ServiceError
from services.trainer.rewards.reward_kinds import RewardFunction

logger = logging.getLogger(__name__)

POLICY_FAILURES = frozenset({StopReason.MALFORMED, StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW})


class RewardService:
    """Scores trajectories concurrently and tries a failed call again; a failure never becomes a number.

    The generator's client has its own quick retries; ``attempts`` here are for outages of seconds. The trajectory is
    kept meanwhile: its tokens are far more expensive than its score.
    """

    def __init__(
        self,
        function: RewardFunction,
        *,
        max_in_flight: int = 64,
        attempts: int = 2,
        pause_seconds: float = 0.5,
        on_failure: Callable[[ServiceError], None] = lambda _error: None,
    ) -> None:
        self._function = function
        self._slots = asyncio.Semaphore(max_in_flight)
        self._attempts = attempts
        self._pause_seconds = pause_seconds
        self._on_failure = on_failure

    def start_step(self) -> None:
        """Forget the answers remembered for the last step."""
        self._function.start_step()

    async def score(self, question: Question, trajectory: Trajectory) -> Outcome:
        """Return the outcome; never raises for a service that failed."""
        for attempt in range(1, self._attempts + 1):
            try:
                async with self._slots:
                    reward = await self._function.score(question, trajectory)
            except ServiceError as error:
                self._on_failure(error)
                if attempt == self._attempts:
                    logger.warning("reward of question %s failed: %s", question.id, error)
                    return InfraFailure(f"reward: {error.kind}: {error}")
                await asyncio.sleep(self._pause_seconds * attempt)
                continue
            if trajectory.stop_reason in POLICY_FAILURES:
                return PolicyFailure(reward.value, trajectory.stop_reason, reward.parts)
            return reward
        raise AssertionError("attempts is at least 1")
