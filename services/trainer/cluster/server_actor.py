"""Runs a vLLM server on the node of a Ray actor; loads no torch, which the process would hold beside vLLM's own.

The actor starts, watches and restarts the process, as ``VllmServer`` does in the trainer, and reports what happens to
it.
"""

import asyncio
from dataclasses import replace

from searchrl.agent.types import Sampling
from searchrl.clients.remote_policy import RemotePolicy
from searchrl.model_server.vllm_command import VllmCommand, find_free_port
from searchrl.model_server.vllm_server import Listener, VllmServer
from searchrl.platform.retry import RetryPolicy

FIRST_TURN = Sampling(max_tokens=1, seed=1)  # whatever it samples shows that the server generates


class ServerActor:
    """The server on one node. All methods run in the actor's event loop."""

    def __init__(self) -> None:
        self._server: VllmServer | None = None
        self._changes: asyncio.Queue[str] = asyncio.Queue()

    async def start(self, command: VllmCommand) -> str:
        """Start the process; return its address, which the other nodes reach.

        Raises:
            ConfigurationError: it ended or answered with an error at start.
        """
        import ray

        host = ray.util.get_node_ip_address()
        command = replace(command, host=host, port=find_free_port(host))
        policy = RemotePolicy(
            command.base_url,
            command.served_name,
            timeout_seconds=command.settings.start_seconds,
            retries=RetryPolicy(attempts=1),  # the supervisor repeats a start that failed
        )
        listener = Listener(self._changes.put_nowait, lambda: self._changes.put_nowait(""))
        self._server = VllmServer(
            command, probe=lambda: policy.generate([1, 2], FIRST_TURN, "first"), listener=listener
        )
        await self._server.start()
        return command.base_url

    async def next_change(self) -> str:
        """Wait until the process is lost, and return the reason, or until it answers again, and return nothing."""
        return await self._changes.get()

    async def restart(self, reason: str) -> None:
        """See ``VllmServer``."""
        if self._server is not None:
            self._server.restart(reason)

    async def stop(self) -> None:
        """See ``VllmServer``."""
        if self._server is not None:
            await self._server.stop()
