"""Runs a service process: settings, logging, tracing, both servers, and the exit codes.

A service describes itself by one ``ServiceSpec``; everything around it is the same for all of them.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import uvloop
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from searchrl.platform.processes import write_termination_message
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.http_middleware import ErrorShape
from searchrl.platform.server.server_runner import run_servers
from searchrl.platform.settings import ServiceSettings
from searchrl.platform.telemetry.logging_setup import set_up_logging
from searchrl.platform.telemetry.trace_export import set_up_tracing

Settings = TypeVar("Settings", bound=ServiceSettings)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What one service adds to the servers that all services share.

    Attributes:
        name: such as "retriever"; the ``component`` label of its metrics, and the title of its REST API.
        full_name: the service's name in the proto, which gRPC health checks and reflection report.
        register: adds the servicer to a gRPC server.
        routers: the REST routes.
        registry: metrics that ``/metrics`` exports.
        keys: keys that callers must show.
        admin_methods: rpcs that need a key with scope admin.
        error_shapes: error forms by path prefix, where they differ from the common one.
        start: runs after the ports are open and before ready, e.g. loads an index.
        drain: runs after the requests in flight have finished, e.g. saves a checkpoint.
        stop: ends the process when it is set; None: only a signal does.
    """

    name: str
    full_name: str
    register: Callable[[grpc.aio.Server], None]
    routers: Sequence[APIRouter]
    registry: CollectorRegistry
    keys: KeyRing
    health: Health
    admin_methods: frozenset[str] = frozenset()
    error_shapes: Mapping[str, ErrorShape] = field(default_factory=dict)
    start: Callable[[], Awaitable[None]] | None = None
    drain: Callable[[], Awaitable[None]] | None = None
    stop: asyncio.Event | None = None

    def build_grpc_server(self) -> grpc.aio.Server:
        """Build the gRPC server; call inside the event loop that runs it."""
        return build_grpc_server(
            self.register,
            full_name=self.full_name,
            keys=self.keys,
            health=self.health,
            admin_methods=self.admin_methods,
            registry=self.registry,
        )

    def build_http_app(self) -> FastAPI:
        """Build the REST application."""
        return build_http_app(
            f"SearchRL {self.name}",
            self.routers,
            keys=self.keys,
            health=self.health,
            registry=self.registry,
            error_shapes=self.error_shapes,
        )


async def serve(spec: ServiceSpec, settings: ServiceSettings) -> None:
    """Serve both transports until SIGTERM, SIGINT or ``spec.stop``; then drain.

    Raises:
        ConfigurationError: a port is taken, or a certificate or an input of ``spec.start`` is unusable.
    """
    await run_servers(
        spec.build_grpc_server(),
        spec.build_http_app(),
        settings=settings,
        health=spec.health,
        start=spec.start,
        drain=spec.drain,
        stop=spec.stop,
    )


def run_service(read_settings: Callable[[], Settings], build: Callable[[Settings], ServiceSpec], name: str) -> None:
    """Run a service process; a bad configuration is one sentence on stderr and exit code 2.

    Args:
        read_settings: reads the settings, such as ``from_environment`` of their class.
        build: builds the service, inside the event loop. It should import heavy packages only then, so that unusable
            settings are refused at once.
    """

    async def run(settings: Settings) -> None:
        await serve(build(settings), settings)

    try:
        settings = read_settings()
        set_up_logging(name, settings.log_format)
        set_up_tracing(name, settings.traces_endpoint)
        run_on_fast_loop(run(settings))
    except ConfigurationError as error:
        # Exit code 2 tells supervisors (searchrl up, and the failure policy of a job) that a restart is useless.
        write_termination_message(f"{name}: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as a shell reports it


def run_on_fast_loop(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine like ``asyncio.run``, on uvloop, the event loop of all our servers."""
    # A loop factory, not ``uvloop.install``, which changes the event loop policy of the entire process.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
