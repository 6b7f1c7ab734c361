"""A small application behind the complete HTTP middleware of a service; its handlers are controlled by the test."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry

from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.errors import InvalidRequest, ServiceError
from searchrl.platform.health import Health
from searchrl.platform.request_context import remaining_seconds, request_id
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.http_app import build_http_app, without_deadline
from searchrl.platform.server.rest_mirror import Mirror, mirror_router

LONG = 30.0  # seconds; longer than anything here takes, so that a test that hangs fails


class Work:
    """The work of the handlers: it waits for ``released`` and records whether it was canceled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.released = asyncio.Event()
        self.was_cancelled = False
        self.seconds_left: float | None = None

    async def do(self) -> str:
        self.seconds_left = remaining_seconds()
        self.begun.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        finally:
            self.ended.set()
        return request_id()


class Servicer:
    """The rpcs behind the mirrored routes."""

    def __init__(self, work: Work) -> None:
        self.work = work

    async def CreateRun(self, message: pb.CreateRunRequest, context: object) -> pb.EvaluationRun:
        return pb.EvaluationRun(run_id=await self.work.do())

    async def WatchRun(self, message: pb.WatchRunRequest, context: object) -> AsyncIterator[pb.EvaluationRun]:
        yield pb.EvaluationRun(run_id="first")
        yield pb.EvaluationRun(run_id=await self.work.do())

    async def GetRun(self, message: pb.GetRunRequest, context: object) -> pb.EvaluationRun:
        await self.work.do()
        return pb.EvaluationRun(run_id=message.run_id)


MIRRORS = (
    Mirror("POST", "/v1/runs", "CreateRun", pb.CreateRunRequest, pb.EvaluationRun),
    Mirror("GET", "/v1/runs/{run_id}/watch", "WatchRun", pb.WatchRunRequest, pb.EvaluationRun, streaming=True),
    Mirror("GET", "/v1/runs/{run_id}", "GetRun", pb.GetRunRequest, pb.EvaluationRun, unlimited=True),
)


def other_shape(error: ServiceError) -> dict[str, object]:
    return {"other": str(error), "kind": error.kind.value}


class Served:
    """An application with its middleware; ``client`` calls it without sockets, ``leave`` disconnects during a call."""

    def __init__(self, keys: KeyRing | None = None, request_seconds: float | None = None) -> None:
        self.work = Work()
        self.registry = CollectorRegistry()
        self.app: FastAPI = build_http_app(
            "SearchRL example",
            [mirror_router(Servicer(self.work), MIRRORS, "runs"), self._plain_routes()],
            keys=keys or KeyRing(),
            health=Health(),
            registry=self.registry,
            max_body_bytes=10_000,
            error_shapes={"/v1/other": other_shape},
        )
        self.app.state.request_seconds = request_seconds

    def _plain_routes(self) -> APIRouter:
        router = APIRouter()

        @router.post("/plain")
        async def plain(body: dict[str, Any] = Body()) -> str:
            return await self.work.do()

        @router.get("/nothing-read")
        async def nothing_read() -> str:
            return await self.work.do()

        @router.get("/long", dependencies=[Depends(without_deadline)])
        async def long() -> str:
            return await self.work.do()

        @router.get("/stream")
        async def stream(request: Request) -> StreamingResponse:
            async def events() -> AsyncIterator[str]:
                yield "data: first\n\n"
                yield f"data: {await self.work.do()}\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")

        @router.post("/v1/other/things")
        async def other(body: dict[str, int] = Body()) -> str:
            raise InvalidRequest("bad thing")

        return router

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test", **options)

    def count(self, outcome: str) -> float:
        rows = [row for metric in self.registry.collect() for row in metric.samples]
        named = [row for row in rows if row.name == "searchrl_requests_total" and row.labels["outcome"] == outcome]
        return sum(row.value for row in named)

    async def leave(self, method: str, path: str, body: bytes = b"") -> list[str]:
        """Send a request and disconnect once its work has started; return the types of messages sent to the caller."""
        sent: list[str] = []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await self.work.begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"",
                 "raw_path": path.encode(), "root_path": "", "http_version": "1.1", "scheme": "http",
                 "asgi": {"version": "3.0", "spec_version": "2.3"}}  # fmt: skip
        async with asyncio.timeout(LONG):
            await self.app(scope, receive, send)
        return sent
