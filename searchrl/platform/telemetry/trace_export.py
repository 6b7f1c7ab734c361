"""Sends spans over OTLP as OpenTelemetry's own variables configure; without an endpoint tracing stays off."""

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

import searchrl
from searchrl.errors import ConfigurationError
from searchrl.platform.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOLS = ("http/protobuf", "grpc")
LONGEST_EXPORT_SECONDS = "3"
"""An unreachable collector must not delay a process that stops (OpenTelemetry's own default is 10 s)."""


def set_up_tracing(component: str, endpoint: str | None = None) -> None:
    """Switch tracing on if ``endpoint`` or the environment names a collector.

    Sampling, headers, certificates and resource attributes follow ``OTEL_TRACES_SAMPLER``,
    ``OTEL_EXPORTER_OTLP_HEADERS`` and so on; ``OTEL_SDK_DISABLED`` and ``OTEL_TRACES_EXPORTER=none`` switch it off.

    Raises:
        ConfigurationError: the extra "tracing" is not installed, or the protocol is unknown.
    """
    if not _is_wanted(os.environ, endpoint):
        return
    # By the variable, because it is read by both exporters; a value of the user has precedence.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", LONGEST_EXPORT_SECONDS)
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(_first(os.environ, PROTOCOL_VARIABLES) or PROTOCOLS[0], endpoint)
    except ImportError as error:
        raise ConfigurationError(
            f"traces are wanted ({ENDPOINT_VARIABLES[-1]} or traces_endpoint is set), but {error.name} is not "
            "installed: install searchrl[tracing], or unset it"
        ) from error
    provider = TracerProvider(resource=Resource.create(_resource(component, os.environ)))
    # Its thread sends the spans, so a request never waits for the collector; if its queue is full, spans are dropped.
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracing.set_provider(provider)


def _is_wanted(environment: Mapping[str, str], endpoint: str | None) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return bool(endpoint or _first(environment, ENDPOINT_VARIABLES))


def _exporter(protocol: str, endpoint: str | None) -> "SpanExporter":
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint)
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        # The exporter adds this path only to an address from OTEL_EXPORTER_OTLP_ENDPOINT, and uses one given in code as
        # it is.
        return HttpExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    raise ConfigurationError(f"{PROTOCOL_VARIABLES[-1]} is '{protocol}'; known: {', '.join(PROTOCOLS)}")


def _resource(component: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Resource attributes that identify this process; values in the environment take precedence."""
    own = {"service.namespace": "searchrl", "service.version": searchrl.__version__}
    if "OTEL_SERVICE_NAME" not in environment:
        own["service.name"] = f"searchrl-{component}"
    given = {part.partition("=")[0].strip() for part in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")}
    own["service.instance.id"] = f"{socket.gethostname()}-{os.getpid()}"
    return {name: value for name, value in own.items() if name not in given}


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")
