"""One vLLM server of an engine: brought to the published weights, and given requests only while it serves them.

Everything runs in the trainer's event loop. After ``start`` a task of the replica's own (``_follow``) is the only one
that changes its weights. States:

    STARTING --weights proved--> SERVING --newer weights wanted--> UPDATING --weights proved--> SERVING
    any state --a request, an update or the process fails--> OUT --answering again, weights proved--> SERVING
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum

from searchrl.agent.types import Generation, Sampling
from searchrl.errors import ServiceError, Unavailable
from searchrl.model_server.vllm_server import Listener, StartedServer
from searchrl.platform.owner_thread import FailureWatch, run_rounds
from services.trainer.engines.base import EngineOutOfDate
from services.trainer.engines.vllm.client import VllmClient
from services.trainer.engines.vllm.server_checks import check_equal_scores, check_scores
from services.trainer.engines.vllm.weight_transfer import StagedWeights, WeightTransfer

logger = logging.getLogger(__name__)

WATCH_SECONDS = 5.0  # between questions which weights a server of somebody else serves
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
"""Pauses before another attempt at such a server double from the first to this one."""
ABORT_SECONDS = 0.2  # between requests to abort what is in flight: an aborted turn is answered within milliseconds
GIVE_UP_AFTER = 3
"""Failures in a row after which a push does not wait for a replica any more: one restart may meet bad luck, and a cause
that survives two is in the weights or in the settings."""
LAST_UPDATE_SECONDS = 30.0
"""How long closing waits for an update of a server of somebody else, which an unfinished one makes useless until it is
restarted. Pods get 120 s to end, in which the run saves a checkpoint as well."""
FIRST_WEIGHTS = "default"  # vLLM's name for the weights that a process loaded when it started


class ReplicaState(StrEnum):
    """What a replica does."""

    STARTING = "starting"
    UPDATING = "updating"
    SERVING = "serving"
    OUT = "out"


class TakenOver(EngineOutOfDate):
    """Somebody else gave the server other weights."""


class Replica:
    """A server and the weights that it is known to serve.

    Args:
        server: its process; None if somebody else runs it.
        interrupts_turns: at new weights, turns are answered with the tokens that they have.
        on_change: called after each change of the state.
        on_failed_push: called for each failed attempt to bring the server to the wanted weights.
    """

    def __init__(
        self,
        client: VllmClient,
        transfer: WeightTransfer,
        *,
        max_in_flight: int,
        update_seconds: float,
        largest_difference: float,
        interrupts_turns: bool,
        on_change: Callable[[], None],
        on_failed_push: Callable[[], None],
    ) -> None:
        self.client = client
        self.server: StartedServer | None = None
        self.state = ReplicaState.STARTING
        self.reason = "it is starting"
        self.served: StagedWeights | None = None
        self.failures = 0  # in a row, while bringing it to the wanted weights
        self.sessions = 0
        self.in_flight = 0
        self._transfer = transfer
        self._update_seconds = update_seconds
        self._largest_difference = largest_difference
        self._interrupts_turns = interrupts_turns
        self._on_change = on_change
        self._on_failed_push = on_failed_push
        self._wanted: StagedWeights | None = None
        self._given = ""  # name of the last weights that it was given
        self._incomplete = False  # an update was started and did not end
        self._scores: list[float] | None = None  # of the probe, under the weights that it serves
        self._slots = asyncio.Semaphore(max_in_flight)
        self._updating = asyncio.Lock()  # held while weights are replaced; ``close`` waits for it
        self._up = asyncio.Event()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._following: asyncio.Task[None] | None = None

    def listener(self) -> Listener:
        """Return the callbacks for the process of this replica."""
        return Listener(self._record_lost, self._up.set)

    async def start(self) -> None:
        """Start the process, or wait for the server.

        Raises:
            searchrl.errors.ConfigurationError: the process ended while starting.
        """
        if self.server is not None:
            await self.server.start()
        else:
            await self.client.wait_until_healthy()
        self._up.set()
        watch = FailureWatch(f"weights of {self.client.base_url}")
        self._following = asyncio.create_task(run_rounds(self._follow, 0.0, watch))

    async def close(self) -> None:
        """End the process, if it is ours, and the connections."""
        if self._following is not None:
            if self.server is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_UPDATE_SECONDS), self._updating:
                        pass
            self._following.cancel()
            await asyncio.wait({self._following})
        if self.server is not None:
            await self.server.stop()
        else:
            await self._leave()
        await self.client.close()

    def want(self, staged: StagedWeights) -> None:
        """Serve these weights as soon as possible; requests in flight end before."""
        self._wanted = staged
        self.failures = 0
        self._work.set()

    def serves(self, staged: StagedWeights) -> bool:
        """Whether it is known to serve exactly these weights."""
        return self.state is ReplicaState.SERVING and self.served is staged

    def lose(self, reason: str) -> None:
        """Send no requests until the server has proved its weights again."""
        if self.state is ReplicaState.SERVING:
            self._set_out(reason)
            self._work.set()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation | None:
        """Sample one turn; None if the replica stopped serving while the request waited."""
        async with self._slots:
            staged = self.served
            if self.state is not ReplicaState.SERVING or staged is None:
                return None
            self.in_flight += 1
            self._idle.clear()
            try:
                generation = await self._sample(staged, prompt_ids, sampling, rollout_id)
            finally:
                self.in_flight -= 1
                if not self.in_flight:
                    self._idle.set()
        # All tokens are of the version at the start: weights are replaced only when nothing is in flight.
        return replace(generation, versions=(staged.version,) * len(generation.ids))

    async def score(self, ids: Sequence[int]) -> list[float]:
        """Return the log-probability of ``ids[1:]`` under the weights that it serves."""
        return await self._score(self.served, ids)

    def in_use(self) -> list[StagedWeights]:
        """Return the weights that turns in flight may still read, besides the newest."""
        return []

    async def _sample(
        self, staged: StagedWeights, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str
    ) -> Generation:
        """Sample a turn under these weights."""
        generation = await self.client.generate(prompt_ids, sampling, rollout_id, staged.name)
        await self._check_process(staged)
        return generation

    async def _score(self, staged: StagedWeights | None, ids: Sequence[int]) -> list[float]:
        return await self.client.score(ids)

    def _record_lost(self, reason: str) -> None:
        self._up.clear()
        self._incomplete, self._scores = False, None  # the next process loads the model folder
        self._set_out(reason)
        self._work.set()

    async def _check_process(self, staged: StagedWeights) -> None:
        """Check that a server of somebody else was not restarted: it would serve the model folder again.

        A turn that ends was sampled by one process alone. If that process names these weights now, it had them all the
        time, because they are not replaced while a turn is in flight. The end of our own processes is seen at once.

        Raises:
            Unavailable: it serves other weights, or does not answer any more.
        """
        if self.server is None and (held := await self.client.served_weights()) != staged.name:
            raise Unavailable(f"{self.client.base_url} serves {held} instead of {staged.name}", None)

    async def _watch(self) -> None:
        """Wait for work; meanwhile check a server of somebody else, which may be restarted between two turns.

        It is called before it has weights, too, while the run waits for a service: a server that nobody calls for long
        may take its run for ended.
        """
        while not self._work.is_set():
            try:
                await asyncio.wait_for(self._work.wait(), WATCH_SECONDS if self.server is None else None)
            except TimeoutError:
                try:
                    if self.state is ReplicaState.SERVING and self.served is not None:
                        await self._check_process(self.served)
                    else:
                        await self.client.find_model()  # a route of every server, however it receives weights
                except ServiceError as error:
                    self.lose(str(error))

    async def _follow(self) -> None:
        """Bring the server to the wanted weights once they change or the server was lost."""
        await self._watch()
        self._work.clear()
        staged = self._wanted
        if staged is None or self.serves(staged):
            await self._tidy()
            return
        if self.state is ReplicaState.SERVING:
            self._set_state(ReplicaState.UPDATING, "new weights are loaded")
        try:
            await self._drain()
            await (self._up.wait() if self.server is not None else self.client.wait_until_healthy())
            async with asyncio.timeout(self._update_seconds):
                await self._synchronize(staged)
        except TakenOver as error:  # it is not taken back: two runs would train on each other's tokens
            self.failures = GIVE_UP_AFTER
            self._on_failed_push()
            self._set_out(str(error))
        except Exception as error:  # whatever it is: a push must not wait forever for a replica in an unknown state
            self.failures += 1
            self._on_failed_push()
            reason = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = f"its update took more than {self._update_seconds:g} s"
            elif not isinstance(error, ServiceError):
                logger.exception("the weights of %s could not be replaced", self.client.base_url)
            self._set_out(reason)
            await self._repair(reason)
            self._work.set()
        else:
            self.failures, self.served = 0, staged
            # Newer weights may be wanted by now: ``want`` has set ``_work``, and the next round loads them.
            if self._wanted is staged:
                self._set_state(ReplicaState.SERVING, "")

    async def _drain(self) -> None:
        """Wait until nothing is in flight; turns have a limit of their own."""
        while self._interrupts_turns and self.state is ReplicaState.UPDATING and self.in_flight:
            # Again and again, because a request that is still on its way to the server is not among those it aborts.
            await self.client.abort_turns()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), ABORT_SECONDS)
        await self._idle.wait()

    async def _synchronize(self, staged: StagedWeights) -> None:
        """Replace the weights unless they are there already, and prove them.

        Raises:
            ServiceError: the server does not answer, refuses, or serves something else.
        """
        held = await self.client.served_weights()
        if self._incomplete or held != staged.name:
            self._check_unchanged(held)
            await self._replace(staged)
            if (held := await self.client.served_weights()) != staged.name:
                raise EngineOutOfDate(f"it was given {staged.name} but serves {held}")
        await self._prove(staged)

    def _check_unchanged(self, held: str) -> None:
        """Raises:
        TakenOver: the server does not serve what it was given last.
        """
        if self._given and held not in (self._given, FIRST_WEIGHTS):
            raise TakenOver(f"it serves {held} although this run gave it {self._given}: another run may be using it")

    async def _replace(self, staged: StagedWeights) -> None:
        client = self.client
        async with self._updating:
            # Also empties the prefix cache, which was computed by the old weights.
            await client.pause()
            connection = await self._transfer.connect(client)
            self._incomplete = True
            await client.start_update()
            await connection.send(staged)
            await client.finish_update(staged.name)
            self._given = staged.name
            self._incomplete = False
            # Before the proof, because a paused server does not score. Rollouts wait for the state, not for this.
            await client.resume()

    async def _prove(self, staged: StagedWeights) -> None:
        """Compare the server's log-probabilities of fixed tokens with the learner's.

        Raises:
            EngineOutOfDate: they differ, or did not change although the learner's did.
        """
        if staged.probe is None:
            return
        scores = await self._score(staged, staged.probe.ids)
        check_scores(scores, staged, self._largest_difference)
        if self._scores == scores and self.served is not None:
            check_equal_scores(self.served, staged)
        self._scores = scores

    async def _tidy(self) -> None:
        """Called when there is nothing to load; of replaced weights nothing is left to remove."""

    async def _leave(self) -> None:
        """Called at the end of the run if the server goes on; replaced weights stay."""

    async def _repair(self, reason: str) -> None:
        """Have the process replaced, or wait before the next attempt at a server of somebody else."""
        if self.server is not None:
            # A process that has ended is being replaced already, and one that answers may hold half of an update.
            if self._up.is_set():
                self._up.clear()
                self.server.restart(reason)
            return
        await asyncio.sleep(min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 16)))

    def _set_out(self, reason: str) -> None:
        self._set_state(ReplicaState.OUT, reason)
        logger.warning("the server %s is out of rotation: %s", self.client.base_url, reason)

    def _set_state(self, state: ReplicaState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_change()
