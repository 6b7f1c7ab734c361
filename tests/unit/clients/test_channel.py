"""A call carries key, request id and deadline, is retried only where that is safe, and fails with the right class."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from searchrl.clients.channel import ServiceChannel, Tls
from searchrl.clients.generator_client import GeneratorClient, Verdict
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1 import generator_pb2_grpc as rpc
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, Unavailable
from searchrl.platform.request_context import deadline, request
from searchrl.platform.retry import RetryPolicy

Context = grpc.aio.ServicerContext


class ScriptedGenerator(rpc.GeneratorServicer):
    """Runs one scripted step per call and records each call's metadata and deadline."""

    def __init__(self, *steps: Callable[[Context], Awaitable[None]]) -> None:
        self._steps = list(steps)
        self.metadata: list[dict[str, str]] = []
        self.seconds: list[float | None] = []
        self.ended = asyncio.Event()

    async def _step(self, context: Context) -> None:
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        self.seconds.append(context.time_remaining())
        if self._steps:
            await self._steps.pop(0)(context)

    async def Judge(self, request: pb.JudgeRequest, context: Context) -> pb.JudgeResponse:
        await self._step(context)
        return pb.JudgeResponse(correct=True, decided_by="span", judge_version="1")

    async def Answer(self, request: pb.AnswerRequest, context: Context) -> AsyncIterator[pb.AnswerEvent]:
        try:
            await self._step(context)
            yield pb.AnswerEvent(tokens=pb.TokensStep(text="one"))
            await self._step(context)
            yield pb.AnswerEvent(final=pb.FinalStep(answer="two"))
        finally:
            self.ended.set()


def refuse(code: grpc.StatusCode, *trailing: tuple[str, str]) -> Callable[[Context], Awaitable[None]]:
    async def step(context: Context) -> None:
        await context.abort(code, "refused", trailing)

    return step


async def nothing(context: Context) -> None:
    return None


async def hang(context: Context) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def served(servicer: ScriptedGenerator, **settings: object) -> AsyncIterator[GeneratorClient]:
    server = grpc.aio.server()
    rpc.add_GeneratorServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with GeneratorClient(f"127.0.0.1:{port}", **settings) as client:  # type: ignore[arg-type]
        yield client
    await server.stop(None)


# Retries as usual, but with waits of milliseconds: no test here is about their length.
FAST = RetryPolicy(first_seconds=0.001, max_seconds=0.002)


async def test_a_call_carries_key_request_id_and_deadline() -> None:
    servicer = ScriptedGenerator()
    async with served(servicer, key="secret") as client:
        with request("r-1", 7.0):
            assert await client.judge("q", "a", ["a"]) == Verdict(True, "span", "1")
    assert servicer.metadata[0]["authorization"] == "Bearer secret"
    assert servicer.metadata[0]["x-request-id"] == "r-1"
    assert servicer.seconds[0] is not None and 5.0 < servicer.seconds[0] <= 7.1  # gRPC rounds up


async def test_the_clients_timeout_is_the_deadline_where_the_caller_has_none() -> None:
    servicer = ScriptedGenerator()
    async with served(servicer, timeout_seconds=50.0) as client:
        await client.judge("q", "a", [])
    assert servicer.seconds[0] is not None and 45.0 < servicer.seconds[0] <= 50.2  # gRPC rounds up to tenths


async def test_an_unavailable_answer_is_retried() -> None:
    servicer = ScriptedGenerator(refuse(grpc.StatusCode.UNAVAILABLE), refuse(grpc.StatusCode.UNAVAILABLE))
    async with served(servicer, retries=FAST) as client:
        await client.judge("q", "a", [])
    assert len(servicer.metadata) == 3


async def test_an_invalid_request_is_not_retried_and_keeps_its_text() -> None:
    servicer = ScriptedGenerator(refuse(grpc.StatusCode.INVALID_ARGUMENT, ("searchrl-error-kind", "invalid")))
    async with served(servicer, retries=FAST) as client:
        with pytest.raises(InvalidRequest, match=r"^refused$"):
            await client.judge("q", "a", [])
    assert len(servicer.metadata) == 1


async def test_a_slow_answer_ends_with_the_deadline() -> None:
    async with served(ScriptedGenerator(hang), timeout_seconds=0.1) as client:
        with pytest.raises(DeadlineExceeded):
            await client.judge("q", "a", [])


async def test_no_call_is_made_after_the_deadline() -> None:
    servicer = ScriptedGenerator()
    async with served(servicer) as client:
        with deadline(0), pytest.raises(DeadlineExceeded, match="no time left"):
            await client.judge("q", "a", [])
    assert servicer.metadata == []


async def test_a_target_without_a_listener_is_unavailable() -> None:
    async with GeneratorClient("127.0.0.1:1", retries=RetryPolicy(attempts=2, first_seconds=0.001)) as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await client.list_methods()


async def test_a_stream_is_retried_before_its_first_message() -> None:
    servicer = ScriptedGenerator(refuse(grpc.StatusCode.UNAVAILABLE))
    async with served(servicer, retries=FAST) as client:
        events = [event async for event in client.answer(Question("1", "q"), "rag")]
    assert [event.WhichOneof("event") for event in events] == ["tokens", "final"]
    assert len(servicer.metadata) == 3  # refused once, then one step before each of two messages


async def test_a_stream_that_began_is_never_retried() -> None:
    servicer = ScriptedGenerator(nothing, refuse(grpc.StatusCode.UNAVAILABLE))
    seen = []
    async with served(servicer, retries=FAST) as client:
        with pytest.raises(Unavailable):
            async for event in client.answer(Question("1", "q"), "rag"):
                seen.append(event.WhichOneof("event"))
    assert seen == ["tokens"]
    assert len(servicer.metadata) == 2


async def test_a_stream_left_early_is_cancelled_on_the_server() -> None:
    servicer = ScriptedGenerator(nothing, hang)
    async with served(servicer) as client:
        events = client.answer(Question("1", "q"), "rag")
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            await servicer.ended.wait()


async def test_cancelling_the_caller_is_a_cancellation_not_an_error() -> None:
    async with served(ScriptedGenerator(hang)) as client:
        task = asyncio.create_task(client.judge("q", "a", []))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_closing_the_channel_fails_a_call_in_flight_as_unavailable() -> None:
    servicer = ScriptedGenerator(hang)
    async with served(servicer, retries=RetryPolicy(attempts=1)) as client:
        task = asyncio.create_task(client.judge("q", "a", []))
        while not servicer.metadata:
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await task


async def test_a_missing_certificate_is_reported_in_one_sentence(tmp_path: Path) -> None:
    channel = ServiceChannel("host:1", rpc.GeneratorStub, tls=Tls(authority=tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        await channel.unary(lambda stub: stub.ListMethods, pb.ListMethodsRequest())


async def test_a_plain_text_target_ignores_the_tls_variables_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCHRL_TLS_AUTHORITY", str(tmp_path / "missing.crt"))
    server = grpc.aio.server()
    rpc.add_GeneratorServicer_to_server(ScriptedGenerator(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with GeneratorClient(address) as stranger, GeneratorClient(f"plain://{address}") as neighbor:
        with pytest.raises(ConfigurationError, match=r"missing\.crt"):
            await stranger.judge("q", "a", ["a"])
        assert (await neighbor.judge("q", "a", ["a"])).correct
    await server.stop(None)
