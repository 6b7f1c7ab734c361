"""Samples rollouts on vLLM servers; implements ``RolloutEngine``.

Every turn of a rollout goes to the same replica, whose prefix cache holds the turns before. A turn that a replica loses
is sampled again on another one, from the same ids and with the same seed: all turns before it are part of its prompt,
so nothing else is lost, and the caller gets exactly one result. A turn that new weights interrupt keeps its tokens.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from searchrl.agent.types import Generation, Sampling
from searchrl.errors import OUTAGE_KINDS, ConfigurationError, ErrorKind, InvalidRequest, ServiceError, Unavailable
from searchrl.platform.request_context import remaining_seconds
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.base import (
    EngineContext,
    EngineCounters,
    EngineHealth,
    EngineOutOfDate,
    PushReport,
)
from services.trainer.engines.sampling import StopDetector
from services.trainer.engines.vllm.replica import GIVE_UP_AFTER, Replica, ReplicaState
from services.trainer.engines.vllm.server_checks import check_server
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.engines.vllm.turn import InterruptedTurn
from services.trainer.engines.vllm.weight_transfer import StagedWeights, WeightTransfer
from services.trainer.learner.reports import PublishedWeights

HEALTH_PART = "rollout engine"
ATTEMPTS = 5
"""Servers that may be lost during one turn. More is no bad luck: the turn itself may be what ends them."""
BUSY_SECONDS = 1.0  # before another attempt at a server that refuses a turn because of its load, and names no time


class VllmEngine:
    """Routes rollouts to replicas, and has every replica serve the published weights.

    Args:
        tokenizer: the run's, by which stop strings are found in turns that continue.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        transfer: WeightTransfer,
        settings: VllmEngineSettings,
        context: EngineContext,
        tokenizer: ModelTokenizer,
    ) -> None:
        self.replicas = tuple(replicas)
        self._transfer = transfer
        self._settings = settings
        self._context = context
        self._placement = context.placement if settings.placement == "ray" else None
        self._has_places = False
        self._stops = StopDetector(tokenizer, tokenizer.vocab_size)
        self._staged: StagedWeights | None = None
        self._routes: dict[str, Replica] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._waiting = 0
        self._prompt_tokens = 0
        self._sampled_tokens = 0

    async def start(self) -> None:
        """See ``RolloutEngine``."""
        if self._placement is not None:
            await asyncio.to_thread(self._placement.reserve)
            self._has_places = True
        # All of them, also after the first failure, which is then raised: ``close`` must not meet one that is starting.
        starts = await asyncio.gather(*(self._start(replica) for replica in self.replicas), return_exceptions=True)
        for error in starts:
            if error is not None:
                raise error

    async def close(self) -> None:
        """End the servers that were started here."""
        self._closed = True
        self.note_change()
        await asyncio.gather(*(replica.close() for replica in self.replicas))
        await asyncio.to_thread(self._transfer.close)
        if self._placement is not None and self._has_places:
            self._has_places = False
            await asyncio.to_thread(self._placement.release)

    def open_session(self, rollout_id: str) -> None:
        """See ``RolloutEngine``; the first turn chooses the replica."""

    def close_session(self, rollout_id: str) -> None:
        """See ``RolloutEngine``."""
        replica = self._routes.pop(rollout_id, None)
        if replica is not None:
            replica.sessions -= 1

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        """See ``searchrl.agent.types.Policy``."""
        failures = 0
        turn = InterruptedTurn(prompt_ids, sampling, self._stops)
        while True:
            replica = await self._route(rollout_id)
            try:
                part = await replica.generate(turn.prompt_ids, turn.sampling, rollout_id)
            except ServiceError as error:
                failures += 1
                left = remaining_seconds()
                # A refusal is the caller's error, and a deadline of the caller's own says nothing about the server.
                if error.kind not in OUTAGE_KINDS or (left is not None and left <= 0) or failures >= ATTEMPTS:
                    raise
                if error.kind is ErrorKind.OVERLOADED:
                    await asyncio.sleep(error.retry_after_seconds or BUSY_SECONDS)
                else:
                    replica.lose(f"a generation failed: {error}")
                    self._context.on_failover()
                continue
            if part is None:
                continue
            generation = turn.add(part)
            # New weights can interrupt a turn before its first token, but not again and again.
            failures = 0 if part.ids else failures + 1
            if generation is None and failures >= ATTEMPTS:
                raise Unavailable(f"{replica.client.base_url} ends turns without a token", None)
            if generation is not None:
                self._prompt_tokens += len(prompt_ids)
                self._sampled_tokens += len(generation.ids)
                return generation

    async def load_weights(self, weights: PublishedWeights) -> None:
        """See ``RolloutEngine``."""
        started = time.monotonic()
        staged = await asyncio.to_thread(self._transfer.stage, weights)
        self._staged = staged
        for replica in self.replicas:
            replica.want(staged)
        await self._wait_until(lambda: all(r.serves(staged) or r.failures for r in self.replicas), None)
        # The others are repaired meanwhile and join later. Below the minimum, the run waits for them.
        await self._wait_until(lambda: self._has_enough(staged) or self._is_hopeless(), self._settings.recovery_seconds)
        if not self._has_enough(staged):
            raise EngineOutOfDate(
                f"only {self._count(staged)} of {len(self.replicas)} servers serve version {staged.version}, and "
                f"engine.min_replicas is {self._settings.min_replicas}: {describe(self.replicas)}"
            )
        kept = [staged, *(older for replica in self.replicas for older in replica.in_use())]
        await asyncio.to_thread(self._transfer.keep_only, kept)
        self._context.on_push(PushReport(time.monotonic() - started, staged.bytes))

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        """See ``RolloutEngine``."""
        if not 1 <= start < len(ids):
            raise InvalidRequest(f"score needs 1 <= start < {len(ids)} tokens, got {start}")
        replica = await self._route("")
        return (await replica.score(ids))[start - 1 :]

    async def health(self) -> EngineHealth:
        """See ``RolloutEngine``."""
        staged = self._staged
        running = sum(replica.in_flight for replica in self.replicas)
        if staged is None or not self._has_enough(staged):
            return EngineHealth(-1, "", ready=False, running=running)
        return EngineHealth(staged.version, staged.fingerprint, not self._closed, running)

    def counters(self) -> EngineCounters:
        """See ``RolloutEngine``; what the servers reuse is in their own metrics."""
        return EngineCounters(self._prompt_tokens, 0, self._sampled_tokens, 0.0, self._waiting)

    def note_change(self) -> None:
        """Wake everybody who waits for a replica."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        health = self._context.health
        if health is None or self._staged is None or self._closed:
            return
        if self._has_enough_in_rotation():
            health.set_working(HEALTH_PART)
        else:
            health.set_failing(HEALTH_PART, f"too few servers can sample: {describe(self.replicas)}")

    async def _start(self, replica: Replica) -> None:
        try:
            async with asyncio.timeout(self._settings.server.start_seconds):
                await replica.start()
            await check_server(replica.client, self._transfer, self._context.model, self._context.context_tokens)
        except TimeoutError as error:
            limit = self._settings.server.start_seconds
            raise ConfigurationError(f"{replica.client.base_url} did not answer within {limit:g} s") from error
        except ServiceError as error:
            raise ConfigurationError(f"{replica.client.base_url} cannot be used: {error}") from error

    async def _route(self, rollout_id: str) -> Replica:
        """Return the rollout's replica, or choose the one with the fewest rollouts; wait while too few are usable.

        Raises:
            Unavailable: there were too few for too long, or the engine is closed.
        """
        self._waiting += 1
        try:
            await self._wait_until(self._is_usable, self._settings.recovery_seconds)
        finally:
            self._waiting -= 1
        if self._closed:
            raise Unavailable("the engine is closed")
        if not self._is_usable():
            raise Unavailable(f"too few servers can sample: {describe(self.replicas)}", None)
        known = self._routes.get(rollout_id)
        if known is not None and known.state is not ReplicaState.OUT:
            await self._wait_until(lambda: known.state is not ReplicaState.UPDATING, None)
            return known
        serving = [replica for replica in self.replicas if replica.state is ReplicaState.SERVING]
        chosen = min(serving, key=lambda replica: replica.sessions)
        if rollout_id:
            self.close_session(rollout_id)
            self._routes[rollout_id] = chosen
            chosen.sessions += 1
        return chosen

    def _is_usable(self) -> bool:
        """Whether enough replicas are in rotation, of which one can sample now."""
        serving = any(replica.state is ReplicaState.SERVING for replica in self.replicas)
        return self._closed or (serving and self._has_enough_in_rotation())

    def _has_enough_in_rotation(self) -> bool:
        states = [replica.state for replica in self.replicas]
        in_rotation = states.count(ReplicaState.SERVING) + states.count(ReplicaState.UPDATING)
        return in_rotation >= self._settings.min_replicas

    def _count(self, staged: StagedWeights) -> int:
        return sum(replica.serves(staged) for replica in self.replicas)

    def _has_enough(self, staged: StagedWeights) -> bool:
        return self._count(staged) >= self._settings.min_replicas

    def _is_hopeless(self) -> bool:
        """Whether so many replicas have failed again and again that the minimum cannot be reached soon."""
        failing = sum(replica.failures >= GIVE_UP_AFTER for replica in self.replicas)
        return len(self.replicas) - failing < self._settings.min_replicas

    async def _wait_until(self, condition: Callable[[], bool], seconds: float | None) -> None:
        """Return once ``condition()`` holds after a change of a replica, or after this time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return


def describe(replicas: Sequence[Replica]) -> str:
    """Name the replicas that do not serve, with the reasons."""
    out = [f"{r.client.base_url}: {r.reason}" for r in replicas if r.state is not ReplicaState.SERVING]
    return "; ".join(out) or "all serve"
