"""Runs one rollout, from its question to its outcome, and scores its trajectory.

Failures of services are retried. A rollout that fails all the same is an outcome; a trajectory waits for its reward as
long as the services behind it are unavailable, so that an outage never becomes a reward.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.search_loop import search_loop
from searchrl.agent.types import Policy, Searcher, StopReason, Tokenizer
from searchrl.domain.passage import SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Outcome, PolicyFailure, Reward, Trajectory, Unscorable
from searchrl.errors import OUTAGE_KINDS, PERMANENT_KINDS, ConfigurationError, ServiceError
from searchrl.platform.retry import UNLIMITED_ATTEMPTS, RetryPolicy, longest
from searchrl.platform.telemetry.tracing import span
from searchrl.rewards.overlong import OverlongPenalty
from searchrl.rewards.retrieval_gain import retrieval_gains
from services.trainer.rewards.base import RewardFunction, add_turns
from services.trainer.rollouts.finished_rollouts import FinishedRollout, FinishedRollouts
from services.trainer.rollouts.group import Rollout, RolloutSettings
from services.trainer.rollouts.refusals import raise_if_run_ends
from services.trainer.rollouts.task_source import PromptGroup

logger = logging.getLogger(__name__)

POLICY_FAILURES = frozenset({StopReason.MALFORMED, StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW})
LONGEST_PAUSE_SECONDS = 30.0
"""Pauses double up to this. A longer one delays rewards after an outage; a shorter one calls failing services more."""


def rollout_seed(run_seed: int, group_id: int, rollout_index: int) -> int:
    """Return the seed of a rollout, a function of its place in the run; the search loop derives one per turn."""
    # A hash, because sums collide: with run_seed + group_id, group 1 of run 0 and group 0 of run 1 would share their
    # random numbers.
    digest = hashlib.sha256(f"{run_seed}/{group_id}/{rollout_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits fit a signed 64-bit integer


def rollout_name(prompt: PromptGroup, rollout_index: int) -> str:
    """Return the id of a rollout in the engines; ids sort by group, then index."""
    # Padded with zeros, because the engine sorts its lockstep batches by this text: g10 would come before g2.
    return f"g{prompt.group_id:09d}-r{rollout_index:04d}"


class RolloutWorker:
    """Runs rollouts: initial search, search loop, reward. Failures of infrastructure are outcomes, not exceptions.

    ``stages`` maps each rollout in progress to what it waits for, for the message of the stall watchdog. A rollout that
    ``finished`` has kept is not sampled again. ``name`` returns the id of a rollout in the engines.
    """

    def __init__(
        self,
        policy: Policy,
        searcher: Searcher,
        tokenizer: Tokenizer,
        profile: SearcherProfile,
        rewards: "RewardScorer",
        settings: RolloutSettings,
        run_seed: int,
        *,
        finished: FinishedRollouts | None = None,
        name: Callable[[PromptGroup, int], str] = rollout_name,
        on_failure: Callable[[ServiceError], None] = lambda _error: None,
    ) -> None:
        self._policy = policy
        self._searcher = searcher
        self._tokenizer = tokenizer
        self._profile = profile
        self._protocol = profile.build_protocol()
        self._rewards = rewards
        # The clients below have waited as long as a server's Retry-After asked, so it is not waited for again here.
        # Doubling needs no ceiling, since the attempts are few: the default is 3, with pauses of 0.5 and 1 s.
        self._retries = RetryPolicy(
            attempts=settings.infra_retries + 1,
            first_seconds=settings.retry_pause_seconds,
            max_seconds=math.inf,
            kinds=OUTAGE_KINDS,
            heeds_retry_after=False,
            uniform=longest,
        )
        self._run_seed = run_seed
        self._finished = finished
        self._name = name
        self._on_failure = on_failure
        self.stages: dict[str, str] = {}

    def prepare(self, prompts: Iterable[PromptGroup], group_size: int) -> None:
        """Prepare for ``group_size`` rollouts of each of these questions."""
        if self._finished is not None:
            self._finished.prepare([prompt.group_id for prompt in prompts], group_size)

    async def run_rollout(self, prompt: PromptGroup, rollout_index: int, on_generated: Callable[[], None]) -> Rollout:
        """Run one rollout to its outcome; call ``on_generated`` when it needs no more tokens.

        Raises:
            searchrl.errors.ConfigurationError: a service refuses this run, whatever the question.
        """
        name = self._name(prompt, rollout_index)
        with span("rollout", {"searchrl.rollout": name}) as rollout_span:
            try:
                rollout = await self._generate_and_score(prompt, rollout_index, on_generated)
            finally:
                self.stages.pop(name, None)
            outcome = type(rollout.outcome).__name__
            rollout_span.set_attributes({"searchrl.outcome": outcome, "searchrl.attempts": rollout.attempts})
            return rollout

    async def _generate_and_score(
        self, prompt: PromptGroup, rollout_index: int, on_generated: Callable[[], None]
    ) -> Rollout:
        name = self._name(prompt, rollout_index)
        self.stages[name] = "tokens and searches"
        try:
            finished = await self._take_or_run(prompt, rollout_index)
        finally:
            on_generated()  # before the reward: in lockstep, a batch starts only when all open sessions wait for tokens
        if isinstance(finished, Rollout):
            return finished
        if self._finished is not None:
            # Before the reward, which may wait out an outage of any length: if the process is killed meanwhile, the
            # next one scores this trajectory instead of sampling it again.
            await self._finished.keep(prompt.group_id, rollout_index, finished)
        scoring = time.monotonic()
        self.stages[name] = "a reward"
        outcome = await self._rewards.score(prompt.question, finished.trajectory)
        seconds = time.monotonic() - scoring
        return Rollout(rollout_index, finished.trajectory, outcome, finished.attempts, finished.seconds, seconds)

    async def _take_or_run(self, prompt: PromptGroup, rollout_index: int) -> FinishedRollout | Rollout:
        """Return the kept rollout, or run it; a ``Rollout`` if there is no trajectory to score."""
        kept = await self._finished.take(prompt.group_id, rollout_index) if self._finished is not None else None
        if kept is not None:
            return kept
        started = time.monotonic()
        result, attempts = await self._run_with_retries(prompt, rollout_index)
        seconds = time.monotonic() - started
        if not isinstance(result, Trajectory):
            return Rollout(rollout_index, None, result, attempts, seconds)
        return FinishedRollout(result, attempts, seconds)

    async def _run_with_retries(
        self, prompt: PromptGroup, rollout_index: int
    ) -> tuple[Trajectory | InfraFailure | Unscorable, int]:
        """Return the trajectory or the last failure, and the number of attempts."""
        attempts = 0

        async def attempt() -> Trajectory:
            nonlocal attempts
            attempts += 1
            try:
                return await self._attempt(prompt, rollout_index)
            except ServiceError as error:
                self._on_failure(error)
                # This raises a ConfigurationError, which neither the retries nor the ``except`` below catch: it passes
                # through the group's task to the orchestrator, which hands it to the training loop.
                raise_if_run_ends("a rollout", error)
                raise

        try:
            return await self._retries.run(attempt), attempts
        except ServiceError as error:
            reason = f"rollout: {error.kind}: {error}"
            if error.kind in PERMANENT_KINDS:
                logger.warning("rollout %s is refused: %s", self._name(prompt, rollout_index), error)
                return Unscorable(reason), attempts
            logger.warning("rollout %s failed: %s", self._name(prompt, rollout_index), error)
            return InfraFailure(reason), attempts

    async def _attempt(self, prompt: PromptGroup, rollout_index: int) -> Trajectory:
        question, profile = prompt.question, self._profile
        initial = await self._initial_results(question) if profile.initial_top_k else None
        return await search_loop(
            question,
            policy=self._policy,
            searcher=self._searcher,
            tokenizer=self._tokenizer,
            protocol=self._protocol,
            limits=profile.limits,
            sampling=profile.sampling(seed=rollout_seed(self._run_seed, prompt.group_id, rollout_index)),
            rollout_id=self._name(prompt, rollout_index),
            initial=initial,
        )

    async def _initial_results(self, question: Question) -> list[SearchResult]:
        found = await self._searcher.search([question.retrieval_query], self._profile.initial_top_k, question.filters)
        return found[0]


async def _retry_at_once(error: ServiceError) -> None:
    """The default of ``on_outage``: do not wait."""


class RewardScorer:
    """Scores trajectories concurrently.

    A trajectory waits for as long as the services behind its reward are unavailable: its tokens are far more expensive
    than its score, and sampling them again would give the same tokens. Only a refusal ends the attempts.

    Args:
        overlong: what long rollouts lose.
        search_gain: weight of each search's gain, a process reward of its turn.
        without_turns: the ``algorithm.kind`` that gives a rollout one advantage, so that a process reward would reach
            no turn; empty if the algorithm reads them.
        on_outage: called after every attempt that failed by an outage; may wait until a retry makes sense.
    """

    def __init__(
        self,
        function: RewardFunction[Any],
        *,
        overlong: OverlongPenalty | None = None,
        search_gain: float = 0.0,
        without_turns: str = "",
        max_in_flight: int = 64,
        pause_seconds: float = 0.5,
        on_failure: Callable[[ServiceError], None] = lambda _error: None,
        on_outage: Callable[[ServiceError], Awaitable[None]] = _retry_at_once,
    ) -> None:
        self._function = function
        self._overlong = overlong
        self._search_gain = search_gain
        self._without_turns = without_turns
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
            searchrl.errors.ConfigurationError: a service refuses every reward of this run, or the reward is one that
                the algorithm does not read.
        """
        try:
            reward = await self._retries.run(lambda: self._attempt(question, trajectory), self._on_outage)
        except ServiceError as error:  # a refusal: outages are retried without limit
            logger.warning("the reward of question %s is refused: %s", question.id, error)
            return Unscorable(f"reward: {error.kind}: {error}")
        if self._without_turns and any(turn is not None for turn in reward.turns):
            raise ConfigurationError(
                "the reward gives turns rewards of their own (turns of Reward), and algorithm.kind "
                f"{self._without_turns} gives all tokens of a rollout one advantage, so they would reach no turn: "
                "return none, or choose another algorithm.kind"
            )
        if self._overlong is not None:
            loss = self._overlong.score(trajectory)
            reward = replace(reward, value=reward.value + loss, parts={**reward.parts, "overlong": loss})
        if self._search_gain:
            gains = retrieval_gains(question, trajectory)
            found = sum(gain for gain in gains if gain is not None)
            turns = add_turns(reward.turns, self._search_gain, gains)
            reward = replace(reward, turns=turns, parts={**reward.parts, "retrieval_gain": found})
        # Only the name of the outcome differs: the value is the reward function's, and the rollout counts in its group.
        if trajectory.stop_reason in POLICY_FAILURES:
            return PolicyFailure(reward.value, trajectory.stop_reason, reward.parts, reward.turns)
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


def describe_waits(stages: Mapping[str, str], group_ids: Sequence[int]) -> str:
    """Describe what the rollouts of running groups wait for, by ``RolloutWorker.stages``."""
    waits = ", ".join(f"{count} for {stage}" for stage, count in Counter(stages.values()).most_common())
    oldest = ", ".join(map(str, group_ids[:3])) or "none"
    return f"{len(group_ids)} groups run (the oldest are {oldest}); rollouts wait: {waits or 'none'}"
