"""Builds a gRPC server: a service's own methods behind the guard interceptor, with health checks and reflection."""

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # pyright: ignore[reportAttributeAccessIssue]
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_interceptor import GuardInterceptor
from searchrl.platform.telemetry.metrics_endpoint import RequestMetrics, component_of

CONNECTION_SECONDS = 30.0
"""Clients find new replicas only when they connect. Calls in flight, however long, finish on the old connection.

Smaller: a new replica gets its share of calls sooner; larger: fewer handshakes.
"""


def build_grpc_server(
    add: Callable[[grpc.aio.Server], None],
    *,
    full_name: str,
    keys: KeyRing,
    health: Health,
    admin_methods: frozenset[str] = frozenset(),
    registry: CollectorRegistry | None = None,
    max_message_bytes: int = 64 << 20,
    connection_seconds: float = CONNECTION_SECONDS,
) -> grpc.aio.Server:
    """Build the server inside the running event loop.

    Args:
        add: registers the servicer.
        full_name: service name of the proto, e.g. ``searchrl.contracts.v1.Retriever``.
        keys: keys that callers must show.
        health: readiness, as the health service reports it.
        admin_methods: methods that need a key with scope admin.
        connection_seconds: age at which a client is asked to reconnect; gRPC varies it by 10 %.
    """
    metrics = RequestMetrics.of(registry, component_of(full_name)) if registry is not None else None
    if metrics is not None:
        metrics.follow(health)
    server = grpc.aio.server(
        interceptors=[GuardInterceptor(keys, admin_methods, metrics)],
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # On Linux gRPC sets SO_REUSEPORT by default: a second process would bind the same port without an error,
            # and the kernel would split the connections between the two.
            ("grpc.so_reuseport", 0),  # an occupied port must be an error
            # Our clients ping every 60 s during a call; by default gRPC drops clients that ping a silent
            # connection more often than every 5 minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # ``max_connection_age_grace`` stays infinite, its default: an older connection takes no new calls (GOAWAY),
            # but its streams may continue, such as an evaluation that is watched for hours.
            ("grpc.max_connection_age_ms", round(connection_seconds * 1000)),
        ],
    )
    add(server)
    servicer = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    _follow_health(servicer, health, full_name)
    reflection.enable_server_reflection(
        (full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    return server


def _follow_health(servicer: health_aio.HealthServicer, health: Health, full_name: str) -> None:
    loop = asyncio.get_running_loop()
    pending: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
    states = health_pb2.HealthCheckResponse

    def show(ready: bool) -> None:
        state = states.SERVING if ready else states.NOT_SERVING
        # The empty name stands for the entire server (gRPC Health Checking Protocol); Kubernetes' gRPC probes ask for
        # it by default.
        for name in ("", full_name):
            task = loop.create_task(servicer.set(name, state))
            pending.add(task)
            task.add_done_callback(pending.discard)

    health.subscribe_in_loop(show)
