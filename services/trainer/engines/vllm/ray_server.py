"""Runs a vLLM server in a Ray actor, on the node that the cluster gives it; if that is lost, starts it on another one.

The actor replaces the process on its node. The trainer sees the end of the actor itself, which comes with that of its
node.
"""

import asyncio
import contextlib
import logging
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from searchrl.errors import ConfigurationError, ServiceError, Unavailable
from searchrl.model_server.vllm_command import VllmCommand
from searchrl.model_server.vllm_server import (
    FIRST_BACKOFF_SECONDS,
    KILL_MARGIN_SECONDS,
    MAX_BACKOFF_SECONDS,
    Listener,
)
from searchrl.platform.owner_thread import FailureWatch, run_rounds
from searchrl.platform.retry import RetryPolicy
from services.trainer.cluster.placement import PLACE_SECONDS, RunPlacement
from services.trainer.cluster.server_actor import ServerActor
from services.trainer.engines.vllm.client import VllmClient

logger = logging.getLogger(__name__)


class RayServer:
    """The server of one replica, with the methods of ``VllmServer``; used in the trainer's event loop.

    Args:
        number: of its place among those of the servers.
        client: the replica's, which is told the address.
        listener: is told what happens to the server.
    """

    def __init__(
        self, placement: RunPlacement, number: int, command: VllmCommand, client: VllmClient, listener: Listener
    ) -> None:
        self.command = command
        self._placement = placement
        self._number = number
        self._client = client
        self._listener = listener
        self._actor: Any = None
        self._following: asyncio.Task[None] | None = None
        self._restarts = RetryPolicy(first_seconds=FIRST_BACKOFF_SECONDS, max_seconds=MAX_BACKOFF_SECONDS)

    async def start(self) -> None:
        """Return once the server has generated.

        Raises:
            ConfigurationError: it ended or answered with an error at start: the settings or the model are wrong.
        """
        try:
            await self._launch()
        except (ServiceError, RayError) as error:
            raise ConfigurationError(f"no vLLM server could be started in a Ray actor: {error}") from error
        watch = FailureWatch(f"Ray actor of vLLM server {self._number}")
        self._following = asyncio.create_task(run_rounds(self._follow, 0.0, watch))

    async def stop(self) -> None:
        """End the process, and the actor with it."""
        if self._following is not None:
            # First: it would take the ending actor for a lost one and start another.
            self._following.cancel()
            await asyncio.wait({self._following})
        if self._actor is None:
            return
        seconds = self.command.settings.shutdown_seconds + 2 * KILL_MARGIN_SECONDS
        with contextlib.suppress(RayError, TimeoutError):
            async with asyncio.timeout(seconds):
                await answer_of(self._actor.stop.remote())
        ray.kill(self._actor)
        self._actor = None

    def restart(self, reason: str) -> None:
        """Have the process replaced on its node."""
        self._actor.restart.remote(reason)

    async def _launch(self) -> None:
        actor_class: Any = ray.remote(ServerActor)
        actor = actor_class.options(**self._placement.server(self._number)).remote()
        try:
            # After the loss of a node, its place may have to wait for another one.
            async with asyncio.timeout(PLACE_SECONDS + self.command.settings.start_seconds):
                url = await answer_of(actor.start.remote(self.command))
        except BaseException:  # also if this is cancelled: no actor may be left that nothing refers to
            ray.kill(actor)
            raise
        self._actor = actor
        self._client.move(url)

    async def _follow(self) -> None:
        """Report the next change of the server; replace an actor that has ended."""
        try:
            reason = await answer_of(self._actor.next_change.remote())
        except RayError as error:
            lost = f"its Ray actor ended: {' '.join(str(error).split())[:300]}"
            self._listener.on_lost(lost)
            logger.error("model server lost", extra={"data": {"reason": lost}})
            await self._replace()
            reason = ""
        if reason:
            self._listener.on_lost(reason)
        else:
            self._listener.on_ready()

    async def _replace(self) -> None:
        """Start another actor, on whichever node has its place now, until one starts."""
        failures = 0
        while True:
            failures += 1
            await asyncio.sleep(self._restarts.longest_pause(failures))
            try:
                await self._launch()
            except (ServiceError, ConfigurationError, RayError, TimeoutError) as error:
                logger.error("model server could not be restarted", extra={"data": {"reason": str(error)}})
            else:
                return


async def answer_of(reference: Any) -> Any:
    """Wait for the answer of an actor without blocking the event loop; its expected errors are raised unwrapped."""
    try:
        return await asyncio.wrap_future(reference.future())
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (ServiceError, ConfigurationError)):
            raise cause from error
        raise Unavailable(f"a Ray actor failed: {cause!r}", None) from error
