"""Runs one rollout, from its question to its outcome."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable

from searchrl.agent.ports import Policy, Searcher, Tokenizer
from searchrl.agent.profile import SearcherProfile
from searchrl.agent.search_loop import search_loop
from searchrl.domain.outcome import InfraFailure, Unscorable
from searchrl.domain.passage import SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from searchrl.errors import PERMANENT_KINDS, ServiceError
from searchrl.platform.tracing import span
from services.trainer.data.task_source import PromptGroup
from services.trainer.rewards.reward_scorer import RewardScorer
from services.trainer.rollouts.finished_rollouts import FinishedRollout, FinishedRollouts
from services.trainer.rollouts.group import Rollout
from services.trainer.rollouts.refusals import raise_if_run_ends

logger = logging.getLogger(__name__)


def rollout_seed(run_seed: int, visit: int, sample: int) -> int:
    """Return the seed of a rollout, a function of its place in the run; the search loop derives one per turn."""
    digest = hashlib.sha256(f"{run_seed}/{visit}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits fit a signed 64-bit integer


def rollout_name(visit: PromptGroup, sample: int) -> str:
    """Return the id of a rollout in the engines; ids sort by visit, then sample."""
    return f"v{prompt.group_id:09d}-s{sample:04d}"


class RolloutWorker:
    """Runs rollouts: initial search, search loop, reward. Failures of infrastructure are outcomes, not exceptions.

    ``stages`` maps each rollout in progress to what it waits for, for the message of the stall watchdog. A rollout that
    ``finished`` has kept is not sampled again.
    """

    def __init__(
        self,
        policy: Policy,
        searcher: Searcher,
        tokenizer: Tokenizer,
        profile: SearcherProfile,
        rewards: RewardScorer,
        run_seed: int,
        *,
        finished: FinishedRollouts | None = None,
        retries: int = 2,
        retry_pause_seconds: float = 0.5,
        on_failure: Callable[[ServiceError], None] = lambda _error: None,
    ) -> None:
        self._policy = policy
        self._searcher = searcher
        self._tokenizer = tokenizer
        self._profile = profile
        self._protocol = profile.build_protocol()
        self._rewards = rewards
        self._run_seed = run_seed
        self._finished = finished
        self._retries = retries
        self._retry_pause_seconds = retry_pause_seconds
        self._on_failure = on_failure
        self.stages: dict[str, str] = {}

    def prepare(self, visits: Iterable[PromptGroup], samples: int) -> None:
        """Prepare for ``samples`` rollouts of each of these visits."""
        if self._finished is not None:
            self._finished.prepare([prompt.group_id for visit in visits], samples)

    async def play(self, visit: PromptGroup, sample: int, played: Callable[[], None]) -> Rollout:
        """Run one rollout to its outcome; call ``played`` when it needs no more tokens.

        Raises:
            searchrl.errors.ConfigurationError: a service refuses this run, whatever the question.
        """
        name = rollout_name(group_id, rollout_index)
        with span("rollout", {"searchrl.rollout": name}) as playing:
            try:
                rollout = await self._play(visit, sample, played)
            finally:
                self.stages.pop(name, None)
            playing.set_attributes(
                {"searchrl.outcome": type(rollout.outcome).__name__, "searchrl.attempts": rollout.attempts}
            )
            return rollout

    async def _play(self, visit: PromptGroup, sample: int, played: Callable[[], None]) -> Rollout:
        name = rollout_name(group_id, rollout_index)
        self.stages[name] = "tokens and searches"
        try:
            finished = await self._finish(group_id, rollout_index)
        finally:
            played()  # before the reward: in lockstep, a batch starts only when every open session waits for tokens
        if isinstance(finished, Rollout):
            return finished
        if self._finished is not None:
            await self._finished.keep(prompt.group_id, sample, finished)
        scoring = time.monotonic()
        self.stages[name] = "a reward"
        outcome = await self._rewards.score(prompt.question, finished.trajectory)
        seconds = time.monotonic() - scoring
        return Rollout(sample, finished.trajectory, outcome, finished.attempts, finished.seconds, seconds)

    async def _finish(self, visit: PromptGroup, sample: int) -> FinishedRollout | Rollout:
        """Return the kept rollout, or run it; a ``Rollout`` if there is no trajectory to score."""
        kept = await self._finished.take(prompt.group_id, sample) if self._finished is not None else None
        if kept is not None:
            return kept
        started = time.monotonic()
        played_out, attempts = await self._play_until_done(group_id, rollout_index)
        seconds = time.monotonic() - started
        if not isinstance(played_out, Trajectory):
            return Rollout(sample, None, played_out, attempts, seconds)
        return FinishedRollout(played_out, attempts, seconds)

    async def _play_until_done(
        self, visit: PromptGroup, sample: int
    ) -> tuple[Trajectory | InfraFailure | Unscorable, int]:
        """Run a rollout with retries; return the trajectory or the last failure, and the number of attempts."""
        pause = self._retry_pause_seconds
        for attempt in range(1, self._retries + 2):
            try:
                return await self._play_once(group_id, rollout_index), attempt
            except ServiceError as error:
                self._on_failure(error)
                raise_if_run_ends("a rollout", error)
                reason = f"rollout: {error.kind}: {error}"
                if error.kind in PERMANENT_KINDS:
                    logger.warning("rollout %s is refused: %s", rollout_name(group_id, rollout_index), error)
                    return Unscorable(reason), attempt
                if attempt > self._retries:
                    logger.warning("rollout %s failed: %s", rollout_name(group_id, rollout_index), error)
                    return InfraFailure(reason), attempt
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns")

    async def _play_once(self, visit: PromptGroup, sample: int) -> Trajectory:
        question, profile = prompt.question, self._profile
        initial = await self._initial_results(question) if profile.initial_top_k else None
        return await search_loop(
            question,
            policy=self._policy,
            searcher=self._searcher,
            tokenizer=self._tokenizer,
            protocol=self._protocol,
            limits=profile.limits,
            sampling=profile.sampling(seed=rollout_seed(self._run_seed, prompt.group_id, sample)),
            rollout_id=rollout_name(group_id, rollout_index),
            initial=initial,
        )

    async def _initial_results(self, question: Question) -> list[SearchResult]:
        found = await self._searcher.search([question.retrieval_query], self._profile.initial_top_k, question.filters)
        return found[0]
