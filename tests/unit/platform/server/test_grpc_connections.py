"""A gRPC connection is closed after a while, so that clients reach new replicas; calls on it are completed.

A stream whose client leaves is closed where it ran.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
from prometheus_client import CollectorRegistry

from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.contracts.v1 import evaluator_pb2_grpc as rpc
from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server


class Peers(rpc.EvaluatorServicer):
    """Answers with the peer address of the call, which differs for each connection."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def GetRun(self, request: pb.GetRunRequest, context: grpc.aio.ServicerContext) -> pb.EvaluationRun:
        return pb.EvaluationRun(run_id=context.peer())

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.EvaluationRun]:
        yield pb.EvaluationRun(run_id="begun")
        await self.release.wait()
        yield pb.EvaluationRun(run_id="ended")


class Endless(rpc.EvaluatorServicer):
    """Sends large messages, so that the next one always waits for the client to read."""

    def __init__(self) -> None:
        self.closed_in_its_own_task = asyncio.get_running_loop().create_future()

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.EvaluationRun]:
        task = asyncio.current_task()
        try:
            while True:
                yield pb.EvaluationRun(run_id="x" * (1 << 20))
        finally:
            self.closed_in_its_own_task.set_result(asyncio.current_task() is task)


async def test_a_stream_whose_client_leaves_while_a_part_is_sent_is_closed_in_its_own_task() -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    servicer, registry = Endless(), CollectorRegistry()
    server = build_grpc_server(
        lambda it: rpc.add_EvaluatorServicer_to_server(servicer, it),
        full_name="searchrl.contracts.v1.Evaluator",
        keys=KeyRing.from_file(None),
        health=Health(),
        registry=registry,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(20):
            call = rpc.EvaluatorStub(channel).WatchRun(pb.WatchRunRequest())
            await call.read()
            call.cancel()
            assert await servicer.closed_in_its_own_task
    finally:
        await server.stop(None)
    labels = {"component": "evaluator", "transport": "grpc", "method": "WatchRun", "outcome": "abandoned"}
    assert registry.get_sample_value("searchrl_requests_total", labels) == 1
    assert errors == []


async def test_a_client_reconnects_after_a_while_and_its_long_call_continues() -> None:
    servicer = Peers()
    server = build_grpc_server(
        lambda it: rpc.add_EvaluatorServicer_to_server(servicer, it),
        full_name="searchrl.contracts.v1.Evaluator",
        keys=KeyRing.from_file(None),
        health=Health(),
        connection_seconds=0.2,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(20):
            stub = rpc.EvaluatorStub(channel)
            long_call = stub.WatchRun(pb.WatchRunRequest())
            assert (await long_call.read()).run_id == "begun"
            first = (await stub.GetRun(pb.GetRunRequest())).run_id
            while (await stub.GetRun(pb.GetRunRequest())).run_id == first:
                await asyncio.sleep(0.01)
            servicer.release.set()
            assert (await long_call.read()).run_id == "ended"
    finally:
        await server.stop(None)
