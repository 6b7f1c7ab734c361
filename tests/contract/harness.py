"""Lets contract tests call one service over both transports: a real gRPC and a real HTTP server in this process."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from fastapi import FastAPI
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1.retriever_pb2_grpc import RetrieverServicer, add_RetrieverServicer_to_server
from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from searchrl.platform.server.server_runner import run_servers
from searchrl.platform.settings import Listen, ServiceSettings

RETRIEVER_MIRRORS = (
    Mirror("POST", "/v1/search", "Search", pb.SearchRequest, pb.SearchResponse),
    Mirror("GET", "/v1/admin/indexes", "ListIndexes", pb.ListIndexesRequest, pb.ListIndexesResponse),
    Mirror("POST", "/v1/admin/indexes", "BuildIndex", pb.BuildIndexRequest, pb.BuildIndexProgress, streaming=True),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a call, in the same form for both transports.

    ``messages`` holds the answer, or a stream's messages; ``error`` is the kind of the failure, "" if there was none.
    """

    messages: list[dict[str, Any]]
    error: str = ""
    message: str = ""
    retry_after: float | None = None


@dataclass(slots=True)
class BothTransports:
    """A running service that can be called over gRPC and HTTP."""

    grpc_target: str
    http_url: str
    key: str | None = None
    http_status: int = 0
    grpc_code: grpc.StatusCode | None = None
    _headers: dict[str, str] = field(default_factory=dict)

    def with_key(self, key: str | None) -> "BothTransports":
        """Return the same service, called with another key."""
        return BothTransports(self.grpc_target, self.http_url, key)

    async def over_grpc(self, stub: Callable[[grpc.aio.Channel], Any], method: str, request: Message) -> Answer:
        """Call a method of a stub; ``grpc_code`` keeps the status."""
        metadata = (("authorization", f"Bearer {self.key}"),) if self.key else ()
        got: list[dict[str, Any]] = []
        async with grpc.aio.insecure_channel(self.grpc_target) as channel:
            call = getattr(stub(channel), method)(request, metadata=metadata, timeout=30)
            try:
                if hasattr(call, "__aiter__"):
                    async for message in call:
                        got.append(to_json(message))
                else:
                    got.append(to_json(await call))
            except grpc.aio.AioRpcError as error:
                self.grpc_code = error.code()
                sent = dict(error.trailing_metadata() or ())
                after = sent.get("retry-after")
                return Answer(
                    got,
                    str(sent.get("searchrl-error-kind", "no kind sent")),
                    error.details() or "",
                    float(after) if after is not None else None,
                )
        self.grpc_code = grpc.StatusCode.OK
        return Answer(got)

    async def over_http(self, mirror: Mirror, request: Message, **settings: Any) -> Answer:
        """Call the REST route of a method; ``http_status`` keeps the status."""
        fields = MessageToDict(request, preserving_proto_field_name=True)
        path = mirror.path
        for name in list(fields):
            if f"{{{name}}}" in path:
                path = path.replace(f"{{{name}}}", str(fields.pop(name)))
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        body = {"params": fields} if mirror.verb == "GET" else {"json": fields}
        async with httpx.AsyncClient(trust_env=False, timeout=30, headers=headers) as client:
            response = await client.request(mirror.verb, self.http_url + path, **body, **settings)
        self.http_status = response.status_code
        if response.status_code >= 400:
            return _error(response.json(), response.headers.get("retry-after"))
        if not mirror.streaming:
            return Answer([_normal(response.json(), mirror.response)])
        return _events(response.text, mirror.response)


def to_json(message: Message) -> dict[str, Any]:
    """Return a message as a dictionary that can be compared."""
    return MessageToDict(message, preserving_proto_field_name=True)


def _normal(body: dict[str, Any], kind: type[Message]) -> dict[str, Any]:
    """Convert JSON to the message and back, so that defaults and forms of numbers cannot differ."""
    return to_json(ParseDict(body, kind()))


def _error(body: dict[str, Any], retry_after: str | None, got: Sequence[dict[str, Any]] = ()) -> Answer:
    error = body["error"]
    after = float(retry_after) if retry_after else None
    return Answer(list(got), error["kind"], error["message"], after)


def _events(text: str, kind: type[Message]) -> Answer:
    got: list[dict[str, Any]] = []
    for block in filter(None, text.split("\n\n")):
        name, data = (line.partition(": ")[2] for line in block.splitlines())
        body = json.loads(data)
        if name == "error":
            return _error(body, None, got)
        got.append(_normal(body if name == "message" else {name: body}, kind))
    return Answer(got)


@asynccontextmanager
async def running(
    grpc_server: grpc.aio.Server, http_app: FastAPI, health: Health, **hooks: Any
) -> AsyncIterator[BothTransports]:
    """Serve both transports on ports chosen by the system until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        ready_file = Path(folder) / "ready.json"
        settings = ServiceSettings(
            listen=Listen(http_port=0, grpc_port=0, drain_seconds=0.5), ready_file=ready_file, log_format="text"
        )
        stop = asyncio.Event()
        serving = asyncio.create_task(
            run_servers(grpc_server, http_app, settings=settings, health=health, stop=stop, **hooks)
        )
        try:
            async with asyncio.timeout(60):
                while not ready_file.exists():
                    assert not serving.done(), serving.result()
                    await asyncio.sleep(0.01)
            ports = json.loads(ready_file.read_text())
            yield BothTransports(ports["grpc"], f"http://{ports['http']}")
        finally:
            stop.set()
            await serving


@asynccontextmanager
async def serving_retriever(
    servicer: RetrieverServicer, keys_file: Path | None = None
) -> AsyncIterator[BothTransports]:
    """Serve a stand-in for the retriever through the real platform: keys, deadlines, errors and metrics."""
    keys, health, registry = KeyRing.from_file(keys_file), Health(), CollectorRegistry()
    grpc_server = build_grpc_server(
        lambda server: add_RetrieverServicer_to_server(servicer, server),
        full_name="searchrl.contracts.v1.Retriever",
        keys=keys,
        health=health,
        admin_methods=frozenset({"ListIndexes", "BuildIndex"}),
        registry=registry,
    )
    router = mirror_router(servicer, RETRIEVER_MIRRORS, "retriever")
    http_app = build_http_app("stand-in", [router], keys=keys, health=health, registry=registry)
    async with running(grpc_server, http_app, health) as both:
        yield both
