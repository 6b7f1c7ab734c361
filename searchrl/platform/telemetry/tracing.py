"""Records OpenTelemetry spans and propagates them between processes as W3C traceparent headers.

While tracing is off (no provider), every call is a no-op and OpenTelemetry is not imported. The provider is a process
global that is set at start and cleared at the end; the current span is a context variable, so that each task has its
own. Spans carry names, sizes, outcomes and the request id, never questions, queries, passages or answers.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from searchrl.errors import ServiceError
from searchrl.platform.request_context import request_id

if TYPE_CHECKING:  # of the optional extra "tracing"; at run time imported only while tracing is on
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as SdkSpan
    from opentelemetry.trace import Tracer

Kind = Literal["internal", "server", "client"]
Attributes = Mapping[str, str | int | float | bool]

REQUEST_ID_ATTRIBUTE = "searchrl.request_id"
CANCELLED = "cancelled"


class Span:
    """One timed piece of work; on the null span (``NO_SPAN``) every method is a no-op."""

    __slots__ = ("_span",)

    def __init__(self, span: "SdkSpan | None") -> None:
        self._span = span

    @property
    def sdk_span(self) -> "SdkSpan | None":
        """The OpenTelemetry span; None while tracing is off."""
        return self._span

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """Replace the name, for work whose name is known only later."""
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, kind: str) -> None:
        """Mark as failed; only the kind is recorded, because messages may quote their input."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", kind)
            self._span.set_status(StatusCode.ERROR)

    def record_error(self, error: BaseException) -> None:
        """Mark as failed by the exception that ended it; a generator that its reader closes early has not failed."""
        if not isinstance(error, GeneratorExit):
            self.fail(failure_kind(error))

    def end(self) -> None:
        """End the span: its duration is complete, and it is exported."""
        if self._span is not None:
            self._span.end()


NO_SPAN = Span(None)
_OFF: AbstractContextManager[Span] = nullcontext(NO_SPAN)
_provider: "TracerProvider | None" = None
_tracer: "Tracer | None" = None
_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


def set_provider(provider: "TracerProvider | None") -> None:
    """Record spans with ``provider`` from now on; None switches tracing off."""
    global _provider, _tracer
    _provider = provider
    _tracer = None if provider is None else provider.get_tracer("searchrl")


def is_on() -> bool:
    """Whether spans are recorded."""
    return _tracer is not None


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    headers: Mapping[str, str] | None = None,
) -> AbstractContextManager[Span]:
    """Return a context manager that makes a span current in its block.

    Its parent is the caller's span if ``headers`` are given, else the current span. An exception marks the span as
    failed, with the kind of the error.
    """
    if _tracer is None:
        # One object for all: ``nullcontext`` has no state, so it may be entered by many tasks at once.
        return _OFF
    return _Running(start_span(name, attributes, kind=kind, headers=headers))


def start_span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    headers: Mapping[str, str] | None = None,
) -> Span:
    """Start a span that the caller ends and that does not become current; for work that is not one block of code."""
    if _tracer is None:
        return NO_SPAN
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    above = _current.get().sdk_span
    context = set_span_in_context(above) if above is not None else None
    # Without a traceparent among the headers the span becomes a root: a request must not join the trace of whatever
    # task happened to start its handler.
    if headers is not None:
        context = TraceContextTextMapPropagator().extract(headers)
    noted = dict(attributes or {})
    if request_id():
        noted[REQUEST_ID_ATTRIBUTE] = request_id()
    return Span(_tracer.start_span(name, context, SpanKind[kind.upper()], noted))


def trace_headers(below: Span | None = None) -> Sequence[tuple[str, str]]:
    """Return headers that make the callee's spans children of ``below``, or of the current span."""
    above = (below or _current.get()).sdk_span
    if above is None:
        return ()
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(above))
    return tuple(carrier.items())


def trace_id() -> str:
    """Id of the current trace as 32 hex digits; empty without a current span."""
    above = _current.get().sdk_span
    return "" if above is None else f"{above.get_span_context().trace_id:032x}"


def trace_exemplar() -> dict[str, str] | None:
    """Labels of a Prometheus exemplar that links a measurement to its trace; None if the trace is not sampled."""
    above = _current.get().sdk_span
    if above is None or not above.get_span_context().trace_flags.sampled:
        return None
    return {"trace_id": trace_id()}


def failure_kind(error: BaseException) -> str:
    """The ``error.type`` of an exception: its error kind, "cancelled", or the name of its class."""
    if isinstance(error, ServiceError):
        return error.kind.value
    return CANCELLED if isinstance(error, asyncio.CancelledError) else type(error).__name__


def shut_down_tracing() -> None:
    """Switch tracing off and send the buffered spans, for a few seconds at most."""
    provider = _provider
    # First, so that no span is started that the provider would drop.
    set_provider(None)
    if provider is not None:
        provider.shutdown()


class _Running:
    """Makes a span current inside a block.

    The previous span is restored by value, not with the context variable's token: a generator may be closed in another
    context than the one it was entered in, where a token is refused.
    """

    __slots__ = ("_before", "_span")

    def __init__(self, running: Span) -> None:
        self._span = running

    def __enter__(self) -> Span:
        self._before = _current.get()
        _current.set(self._span)
        return self._span

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        _current.set(self._before)
        if error is not None:
            self._span.record_error(error)
        self._span.end()
