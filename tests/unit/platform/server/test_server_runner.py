"""A service process: ports, readiness, draining, errors, and a port that is in use."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.contracts.v1 import evaluator_pb2_grpc as rpc
from searchrl.errors import ConfigurationError, NotFound, Overloaded, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.request_context import request
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from searchrl.platform.server.server_runner import run_servers
from searchrl.platform.settings import Listen, ServiceSettings
from searchrl.platform.telemetry.logging_setup import JsonFormatter

FULL_NAME = "searchrl.contracts.v1.Evaluator"
MIRRORS = [
    Mirror("POST", "/v1/runs", "CreateRun", pb.CreateRunRequest, pb.EvaluationRun),
    Mirror("GET", "/v1/runs/{run_id}/watch", "WatchRun", pb.WatchRunRequest, pb.EvaluationRun, streaming=True),
    Mirror("GET", "/v1/runs/{run_id}", "GetRun", pb.GetRunRequest, pb.EvaluationRun),
]


class ExampleSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EXAMPLE_")


class ExampleServicer(rpc.EvaluatorServicer):
    """Fails in the way that the run id says."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()

    async def CreateRun(self, request: pb.CreateRunRequest, context: object) -> pb.EvaluationRun:
        if request.run_id == "missing":
            raise NotFound("no such run")
        if request.run_id == "busy":
            raise Overloaded("busy", retry_after_seconds=7)
        if request.run_id == "bug":
            raise ValueError("secret detail")
        if request.run_id == "slow":
            self.entered.set()
            await self.release.wait()
        return pb.EvaluationRun(run_id=request.run_id)

    async def WatchRun(self, request: pb.WatchRunRequest, context: object) -> AsyncIterator[pb.EvaluationRun]:
        if request.run_id == "missing":
            raise NotFound("no such run")
        yield pb.EvaluationRun(run_id="1")
        raise Unavailable("gone")

    async def GetRun(self, request: pb.GetRunRequest, context: object) -> pb.EvaluationRun:
        return pb.EvaluationRun(run_id=request.run_id)


class Running:
    """A running pair of servers, gRPC and HTTP."""

    def __init__(self, folder: Path, drain_seconds: float = 5.0) -> None:
        self.health = Health()
        self.stop = asyncio.Event()
        self.servicer = ExampleServicer()
        self.ready_file = folder / "ready.json"
        self.settings = ExampleSettings(
            listen=Listen(http_port=0, grpc_port=0, drain_seconds=drain_seconds), ready_file=self.ready_file
        )
        self.addresses: dict[str, str] = {}

    async def __aenter__(self) -> "Running":
        registry = CollectorRegistry()
        keys = KeyRing.from_file(None)
        server = build_grpc_server(
            lambda it: rpc.add_EvaluatorServicer_to_server(self.servicer, it),
            full_name=FULL_NAME,
            keys=keys,
            health=self.health,
            registry=registry,
        )
        app = build_http_app(
            "example",
            [mirror_router(self.servicer, MIRRORS, "example")],
            keys=keys,
            health=self.health,
            registry=registry,
            max_body_bytes=1000,
        )
        ready = asyncio.Event()
        self.health.subscribe(lambda is_ready: ready.set() if is_ready else None)
        self.task = asyncio.create_task(
            run_servers(server, app, settings=self.settings, health=self.health, stop=self.stop)
        )
        await ready.wait()
        await asyncio.sleep(0)  # the runner writes the ready file in the same step, after it reports readiness
        self.addresses = json.loads(self.ready_file.read_text())
        self.http = httpx.AsyncClient(base_url=f"http://{self.addresses['http']}")
        self.channel = grpc.aio.insecure_channel(self.addresses["grpc"])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await self.task
        await self.http.aclose()
        await self.channel.close()


async def test_both_transports_serve_and_report_ready(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        assert (await running.http.get("/livez")).status_code == 200
        assert (await running.http.get("/readyz")).json() == {"status": "ok"}
        health = cast(Any, health_pb2_grpc.HealthStub(running.channel))
        answer = await health.Check(health_pb2.HealthCheckRequest(service=FULL_NAME))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        running.health.set_not_ready("index is loading")
        refused = await running.http.get("/readyz")
        assert (refused.status_code, refused.json()) == (503, {"status": "index is loading"})
    assert not running.ready_file.exists()


@pytest.mark.parametrize(
    ("run_id", "status", "kind"), [("missing", 404, "not_found"), ("busy", 429, "overloaded"), ("bug", 500, "internal")]
)
async def test_failures_follow_the_error_table(tmp_path: Path, run_id: str, status: int, kind: str) -> None:
    async with Running(tmp_path) as running:
        answer = await running.http.post("/v1/runs", json={"run_id": run_id}, headers={"x-request-id": "r-1"})
        error = answer.json()["error"]
        assert (answer.status_code, error["kind"], error["request_id"]) == (status, kind, "r-1")
        assert "secret" not in answer.text
        assert answer.headers.get("retry-after") == ("7" if run_id == "busy" else None)


async def test_a_body_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        answer = await running.http.post("/v1/runs", json={"run": "x"})
        assert answer.status_code == 400
        assert "run" in answer.json()["error"]["message"]
        assert (await running.http.get("/v1/runs/a?color=red")).status_code == 400


async def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        assert (await running.http.post("/v1/runs", json={"run_id": "x" * 2000})).status_code == 413


async def test_a_stream_that_fails_late_ends_with_an_error_event(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        text = (await running.http.get("/v1/runs/a/watch")).text
        assert text.startswith('event: message\ndata: {"run_id":"1"')
        assert 'event: error\ndata: {"error":{"kind":"unavailable"' in text
        assert (await running.http.get("/v1/runs/missing/watch")).status_code == 404


async def test_the_deadline_of_the_header_ends_the_request(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        answer = await running.http.post("/v1/runs", json={"run_id": "slow"}, headers={"x-request-timeout": "0.05"})
        assert (answer.status_code, answer.json()["error"]["kind"]) == (504, "deadline")
        bad = await running.http.post("/v1/runs", json={}, headers={"x-request-timeout": "soon"})
        assert bad.status_code == 400


@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_a_request_in_flight_finishes_during_the_drain(tmp_path: Path, transport: str) -> None:
    async with Running(tmp_path) as running:
        stub = rpc.EvaluatorStub(running.channel)
        if transport == "http":
            call = asyncio.ensure_future(running.http.post("/v1/runs", json={"run_id": "slow"}))
        else:
            call = asyncio.ensure_future(stub.CreateRun(pb.CreateRunRequest(run_id="slow")))
        await running.servicer.entered.wait()
        draining = asyncio.Event()
        running.health.subscribe(lambda ready: None if ready else draining.set())
        running.stop.set()
        await draining.wait()
        running.servicer.release.set()
        answer = await call
        assert (answer.json()["run_id"] if isinstance(answer, httpx.Response) else answer.run_id) == "slow"


async def test_an_occupied_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for listen in (Listen(http_port=port, grpc_port=0), Listen(http_port=0, grpc_port=port)):
            health, keys, registry = Health(), KeyRing.from_file(None), CollectorRegistry()
            server = build_grpc_server(lambda _: None, full_name=FULL_NAME, keys=keys, health=health)
            app = build_http_app("example", [], keys=keys, health=health, registry=registry)
            with pytest.raises(ConfigurationError, match=rf"cannot listen on 127.0.0.1:{port}.*set listen\."):
                await run_servers(server, app, settings=ExampleSettings(listen=listen), health=health)


def test_a_log_line_is_one_json_object_with_the_request_id() -> None:
    record = logging.LogRecord("a", logging.INFO, "f", 1, "done %d", (3,), None)
    record.data = {"rows": 7}
    with request("r-9", None):
        line = json.loads(JsonFormatter("retriever").format(record))
    assert (line["message"], line["request_id"], line["rows"], line["service"]) == ("done 3", "r-9", 7, "retriever")


async def test_a_service_that_is_stopped_while_it_starts_ends_its_start_before_it_drains(tmp_path: Path) -> None:
    entered, never, stop, drained = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    ended: list[str] = []
    health = Health()
    settings = ExampleSettings(listen=Listen(http_port=0, grpc_port=0), ready_file=tmp_path / "ready.json")

    async def start() -> None:
        entered.set()
        try:
            await never.wait()
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(drained.wait(), 0.5)
            ended.append("start")

    async def drain() -> None:
        ended.append("drain")
        drained.set()

    keys, registry = KeyRing.from_file(None), CollectorRegistry()
    grpc_server = build_grpc_server(lambda server: None, full_name=FULL_NAME, keys=keys, health=health)
    app = build_http_app("example", [], keys=keys, health=health, registry=registry)
    running = asyncio.create_task(
        run_servers(grpc_server, app, settings=settings, health=health, start=start, drain=drain, stop=stop)
    )
    await entered.wait()
    stop.set()
    async with asyncio.timeout(10):
        await running
    assert ended == ["start", "drain"]
    assert not health.ready
    assert not (tmp_path / "ready.json").exists()


async def test_clients_that_keep_connections_lose_no_request_to_a_stop(tmp_path: Path) -> None:
    """The last answer tells each client to reconnect, which in a cluster leads to another replica."""
    failures: list[httpx.HTTPError] = []

    async def ask_until_sent_away(running: Running) -> None:
        while True:
            try:
                answer = await running.http.get("/v1/runs/any")
            except httpx.HTTPError as error:
                failures.append(error)
                return
            if answer.headers.get("connection") == "close":
                return

    async with Running(tmp_path) as running:
        asking = [asyncio.create_task(ask_until_sent_away(running)) for _ in range(8)]
        await running.http.get("/livez")
        running.stop.set()
        await asyncio.gather(running.task, *asking)
    assert failures == []


async def test_an_idle_connection_is_kept_longer_than_clients_keep_it(tmp_path: Path) -> None:
    """httpx drops it after 5 s; if the server were first, a request could hit a connection that is being closed."""
    async with Running(tmp_path) as running:
        host, _, port = running.addresses["http"].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await reader.read(1000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), timeout=5.5)
        writer.close()
