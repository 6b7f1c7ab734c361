"""gRPC interceptor that gives each call its request id, deadline, authorization, metrics and error status."""

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from searchrl.errors import InvalidRequest, ServiceError
from searchrl.platform.json_text import without_lone_surrogates
from searchrl.platform.request_context import REQUEST_ID_HEADER, request, request_id
from searchrl.platform.server.auth import KeyRing, Scope
from searchrl.platform.status_map import ERROR_KIND_METADATA, RETRY_AFTER_METADATA, STATUS
from searchrl.platform.telemetry.metrics_endpoint import ABANDONED, RequestMetrics
from searchrl.platform.telemetry.tracing import span

logger = logging.getLogger(__name__)

STATUS_BYTES = 4096
"""Longest message of a status, as it is sent. It is a header, and gRPC's clients refuse more than 8 KiB of headers with
an error of their own, which hides this one; the other half is for the rest of the headers.
"""
_CUT = " ... "
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)  # Kubernetes probes carry no key


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Wraps calls of all four kinds (unary or streaming on each side); their errors reach the client by the table.

    A failed call is aborted after its span has ended: ``abort`` raises, and the span would record that exception
    instead of the failure.
    """

    def __init__(self, keys: KeyRing, admin_methods: frozenset[str], metrics: RequestMetrics | None) -> None:
        self._keys = keys
        self._admin_methods = admin_methods
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        # Without a handler gRPC itself answers UNIMPLEMENTED. The method's name comes from the caller, so counting it
        # would let anybody create metric series without limit.
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        kind = ("stream" if handler.request_streaming else "unary") + "_"
        kind += "stream" if handler.response_streaming else "unary"
        guard = self._guard_stream if handler.response_streaming else self._guard_unary
        guarded = guard(method, getattr(handler, kind))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(guarded, _deserializer(handler.request_deserializer), handler.response_serializer)

    def _guard_unary(self, method: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def handle(message: Any, context: grpc.aio.ServicerContext) -> Any:
            with self._enter(method, context) as outcome:
                try:
                    self._authorize(method, context)
                    return await call(_check_decoded(message), context)
                except Exception as error:  # noqa: BLE001 - outermost level: every failure gets its status
                    failure = _as_service_error(error)
                    outcome.append(failure.kind.value)
            await _abort(context, failure)
            return None

        return handle

    def _guard_stream(self, method: str, call: Callable[..., AsyncGenerator[Any]]) -> Callable[..., Awaitable[None]]:
        # A coroutine that writes the parts, and not a generator of them: gRPC does not close a generator whose client
        # leaves while a part is being sent. The garbage collector would, in another task, where the request's context
        # variables cannot be reset.
        async def handle(message: Any, context: grpc.aio.ServicerContext) -> None:
            failure: ServiceError | None = None
            is_sending = False
            with self._enter(method, context) as outcome:
                try:
                    self._authorize(method, context)
                    async with aclosing(call(_check_decoded(message), context)) as parts:
                        async for part in parts:
                            is_sending = True
                            await context.write(part)
                            is_sending = False
                except Exception as error:
                    if is_sending:  # gRPC's own error: the client has left, and the task is about to be cancelled
                        outcome.append(ABANDONED)
                        raise
                    failure = _as_service_error(error)
                    outcome.append(failure.kind.value)
            if failure is not None:
                await _abort(context, failure)

        return handle

    def _authorize(self, method: str, context: grpc.aio.ServicerContext) -> None:
        name = method.rsplit("/", 1)[-1]
        needed = Scope.ADMIN if name in self._admin_methods else Scope.READ
        self._keys.authorize(_metadata(context).get("authorization"), needed)

    @contextmanager
    def _enter(self, method: str, context: grpc.aio.ServicerContext):
        started = time.monotonic()
        outcome: list[str] = []
        metadata = _metadata(context)
        service, _, name = method.lstrip("/").rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        with (
            request(metadata.get(REQUEST_ID_HEADER), context.time_remaining()),
            span(f"{service}/{name}", attributes, kind="server", headers=metadata) as served,
            self._in_flight(),
        ):
            try:
                yield outcome
            # gRPC cancels the handler of a call whose client is gone or whose deadline has passed.
            except asyncio.CancelledError:
                outcome.append(ABANDONED)
                raise
            finally:
                if outcome:
                    served.fail(outcome[0])
                if self._metrics is not None:
                    self._metrics.record("grpc", name, outcome[0] if outcome else "ok", time.monotonic() - started)

    def _in_flight(self) -> AbstractContextManager[None]:
        return nullcontext() if self._metrics is None else self._metrics.in_flight("grpc")


class _NoMessage:
    """Stands for a request that cannot be decoded: the caller's error, which gRPC itself would report as INTERNAL."""


def _deserializer(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def decode(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            return _NoMessage()

    return decode


def _check_decoded(message: Any) -> Any:
    """Return the message or stream of messages.

    Raises:
        InvalidRequest: a message could not be decoded; from a stream, when it is read.
    """
    if isinstance(message, _NoMessage):
        raise InvalidRequest("the request cannot be decoded as a message of this call")
    return _check_each(message) if isinstance(message, AsyncIterator) else message


async def _check_each(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _check_decoded(message)


def _metadata(context: grpc.aio.ServicerContext) -> dict[str, str]:
    # Keys that end in "-bin" have bytes as values; none of ours does.
    return {key: value for key, value in (context.invocation_metadata() or ()) if isinstance(value, str)}


def _as_service_error(error: Exception) -> ServiceError:
    """Return expected failures unchanged; log anything else, and hide it from the caller behind the request id."""
    if isinstance(error, ServiceError):
        return error
    logger.error("unexpected failure", exc_info=error)
    return ServiceError(f"internal error; request id {request_id()}")


async def _abort(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    trailing = [(ERROR_KIND_METADATA, error.kind.value)]
    if error.retry_after_seconds is not None:
        trailing.append((RETRY_AFTER_METADATA, f"{error.retry_after_seconds:g}"))
    await context.abort(
        STATUS[error.kind][1],
        # gRPC sends the message as UTF-8, which cannot carry half of a surrogate pair: encoding it would fail, and the
        # caller would not get this error.
        _clip(without_lone_surrogates(str(error))) or error.kind.value,
        trailing_metadata=tuple(trailing),
    )


def _clip(message: str) -> str:
    """Return the message within ``STATUS_BYTES``: its beginning and its end, which names the cause."""
    # A header is percent-encoded: a byte that is no printable ASCII character, or is "%", takes three.
    costs = [
        1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode()) for character in message
    ]
    if sum(costs) <= STATUS_BYTES:
        return message
    first = bisect_right(list(accumulate(costs)), STATUS_BYTES // 4)
    last = bisect_right(list(accumulate(reversed(costs))), STATUS_BYTES * 3 // 4 - len(_CUT))
    return message[:first] + _CUT + message[len(message) - last :]
