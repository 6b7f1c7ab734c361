"""gRPC channel to one service, with API key, request id, deadline, retries, tracing and error translation."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from searchrl.clients.call_errors import from_grpc
from searchrl.errors import ConfigurationError, DeadlineExceeded, Unavailable
from searchrl.platform.request_context import REQUEST_ID_HEADER, deadline, remaining_seconds, request_id
from searchrl.platform.retry import RetryPolicy
from searchrl.platform.server.tls import client_authority
from searchrl.platform.telemetry.tracing import Span, is_on, span, start_span, trace_headers

MAX_MESSAGE_BYTES = 64 << 20  # the limit of our servers; gRPC's default is 4 MiB
CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A call on a dead connection fails after 60 + 20 s instead of waiting for its deadline; idle channels do not ping.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Servers answer too many pings with GOAWAY ("too_many_pings"); ours accept one each 10 s.
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.enable_retries", 0),  # retries are decided in platform.retry, which knows the error kinds
    ("grpc.enable_http_proxy", 0),  # services are neighbors; the environment's proxy is for the internet
    # gRPC's default, pick_first, would send all calls of this process to the first of them.
    ("grpc.lb_policy_name", "round_robin"),  # a headless Kubernetes service resolves to several pods
    # A restarted service is found again within 2 s; gRPC's defaults are 1 s, growing to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # pods are replaced faster than the default of 30 s
)
PLAIN = "plain://"  # prefix of a target that is called without TLS

Request = TypeVar("Request", bound=Message)
Request_contra = TypeVar("Request_contra", bound=Message, contravariant=True)
Response = TypeVar("Response", bound=Message)
Response_co = TypeVar("Response_co", bound=Message, covariant=True)
Stub = TypeVar("Stub")


class UnaryMethod(Protocol[Request_contra, Response_co]):
    """A unary rpc of a generated stub."""

    def __call__(
        self, request: Request_contra, *, timeout: float | None, metadata: Sequence[tuple[str, str]]
    ) -> Awaitable[Response_co]: ...


class StreamCall(Protocol[Response_co]):
    """A streaming call in progress."""

    def __aiter__(self) -> AsyncIterator[Response_co]: ...

    def cancel(self) -> bool: ...


class StreamMethod(Protocol[Request_contra, Response_co]):
    """A server-streaming rpc of a generated stub."""

    def __call__(
        self, request: Request_contra, *, timeout: float | None, metadata: Sequence[tuple[str, str]]
    ) -> StreamCall[Response_co]: ...


@dataclass(frozen=True, slots=True)
class Tls:
    """The PEM file of the authority that signed the server's certificate; None: the system's trusted authorities."""

    authority: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the file.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            return grpc.ssl_channel_credentials(self.authority.read_bytes() if self.authority else None)
        except OSError as error:
            raise ConfigurationError(f"cannot read the TLS file {error.filename}: {error.strerror}") from error


class _MethodNames:
    """Replaces a stub when only the name of the chosen method is needed."""

    def __getattr__(self, name: str) -> str:
        return name


class ServiceChannel(Generic[Stub]):
    """A lazily opened channel to one service.

    The channel is opened by the first call, inside the running event loop, because a gRPC channel belongs to a loop.
    Without ``tls`` it uses TLS if the environment names an authority (``SEARCHRL_TLS_AUTHORITY``), except for a target
    written ``plain://host:port``, such as another container of the same pod.
    """

    def __init__(
        self,
        target: str,
        stub: Callable[[grpc.aio.Channel], Stub],
        *,
        key: str | None = None,
        timeout_seconds: float | None = 30.0,
        tls: Tls | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        self.target = target.removeprefix(PLAIN)
        self._is_plain = tls is None and target.startswith(PLAIN)
        self._make_stub = stub
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._tls = tls
        self._retries = retries or RetryPolicy()
        self._channel: grpc.aio.Channel | None = None
        self._stub: Stub | None = None

    @property
    def stub(self) -> Stub:
        """The generated stub; opens the channel on first use."""
        if self._stub is None:
            self._channel = self._open()
            self._stub = self._make_stub(self._channel)
        return self._stub

    async def unary(
        self, method: Callable[[Stub], UnaryMethod[Request, Response]], request: Request, *, unlimited: bool = False
    ) -> Response:
        """Call a unary rpc with retries; all attempts and pauses together stay within timeout and deadline.

        ``unlimited`` removes the client's own timeout; the caller's deadline stays in force.

        Raises:
            ServiceError: the call failed; the class says how.
        """

        async def once() -> Response:
            # Computed for each attempt: the server is told the time that is left now, and stops its work when it has
            # passed.
            seconds = self._seconds_left()
            with span(*self._span_of(method), kind="client"), self._translate_errors():
                return await method(self.stub)(request, timeout=seconds, metadata=self._metadata())

        # One deadline around all attempts and pauses, not one for each attempt.
        with deadline(None if unlimited else self._timeout_seconds):
            return await self._retries.run(once)

    async def stream(
        self, method: Callable[[Stub], StreamMethod[Request, Response]], request: Request, *, unlimited: bool = False
    ) -> AsyncIterator[Response]:
        """Call a streaming rpc. It is retried only until its first message; later failures reach the caller.

        ``unlimited`` removes the client's own timeout; the caller's deadline stays in force.

        Raises:
            ServiceError: the call failed; the class says how.
        """

        call: StreamCall[Response] | None = None
        stream_span = start_span(*self._span_of(method), kind="client")

        async def first() -> tuple[AsyncIterator[Response], Response | None]:
            # The last attempt's call is the one that ``finally`` cancels; a failed one has ended already.
            nonlocal call
            call = method(self.stub)(request, timeout=self._seconds_left(), metadata=self._metadata(stream_span))
            messages = aiter(call)
            with self._translate_errors():
                return messages, await anext(messages, None)

        try:
            # Left before the first ``yield``: the reader may resume or close this generator in another context, where
            # resetting the deadline's context variable raises. The rest of the stream is limited by the call's own
            # ``timeout``.
            with deadline(None if unlimited else self._timeout_seconds):
                messages, message = await self._retries.run(first)
            while message is not None:
                yield message
                with self._translate_errors():
                    message = await anext(messages, None)
        except BaseException as error:
            stream_span.record_error(error)
            raise
        finally:
            stream_span.end()
            if call is not None:
                call.cancel()  # stops the server's work if the caller stops reading; no effect on a finished call

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error, self.target) from error
        except asyncio.CancelledError:
            # gRPC raises CancelledError also if the channel is closed under a call; only a real one may pass.
            if _is_being_cancelled():
                raise
            raise Unavailable(f"{self.target}: the channel was closed during the call", None) from None

    async def close(self) -> None:
        """Close the channel; a later call opens a new one."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self) -> grpc.aio.Channel:
        authority = None if self._is_plain else client_authority()
        tls = self._tls or (Tls(authority) if authority else None)
        if tls is not None:
            return grpc.aio.secure_channel(self.target, tls.credentials(), options=CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)

    def _seconds_left(self) -> float | None:
        left = remaining_seconds()
        if left is not None and left <= 0:
            raise DeadlineExceeded(f"no time left to call {self.target}")
        return left

    def _span_of(self, method: Callable[[Stub], object]) -> tuple[str, dict[str, str]]:
        """Return name and attributes of a call's span; empty while tracing is off."""
        if not is_on():
            return "", {}
        name = str(method(cast(Stub, _MethodNames())))
        # The stub has no descriptor; its module and class are named after the package and the service of the proto.
        package = self._make_stub.__module__.rpartition(".")[0]
        service = f"{package}.{self._make_stub.__name__.removesuffix('Stub')}"
        return f"{service}/{name}", {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

    def _metadata(self, below: Span | None = None) -> list[tuple[str, str]]:
        metadata = list(trace_headers(below))
        if self._key:
            metadata.append(("authorization", f"Bearer {self._key}"))
        if request_id():
            metadata.append((REQUEST_ID_HEADER, request_id()))
        return metadata


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    # ``cancelling`` counts the requests to cancel this task that are still open; it is 0 if gRPC raised on its own.
    return task is not None and task.cancelling() > 0
