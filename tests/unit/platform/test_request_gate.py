"""What every HTTP request meets: its caller's leaving, a default deadline, its id, its key, the form of its errors."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.errors import InvalidRequest, ServiceError
from searchrl.platform.auth import KeyRing
from searchrl.platform.health import Health
from searchrl.platform.http_app import build_http_app, without_deadline
from searchrl.platform.json_text import has_lone_surrogates, refuse_lone_surrogates, without_lone_surrogates
from searchrl.platform.request_context import remaining_seconds, request, request_id
from searchrl.platform.rest_mirror import Mirror, mirror_router

LONG = 30.0
KEY = "read-key"


class Work:
    """What the handlers do, so that tests see how it ends."""

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
    """The mirrored routes."""

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
    """An application and what is around it; ``ask`` plays the server."""

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
        """Send a request, and go away once its work has begun; returns what was sent to the caller."""
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


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/runs", b"{}"),
        ("GET", "/v1/runs/one", b""),
        ("GET", "/v1/runs/one/watch", b""),
        ("POST", "/plain", b"{}"),
        ("GET", "/nothing-read", b""),
        ("GET", "/long", b""),
        ("GET", "/stream", b""),
    ],
)
async def test_a_caller_that_leaves_ends_the_work_on_every_kind_of_route(method: str, path: str, body: bytes) -> None:
    served = Served()
    await served.leave(method, path, body)
    assert served.work.was_cancelled
    assert (served.count("abandoned"), served.count("ok")) == (1, 0)


async def test_a_process_that_stops_is_not_taken_for_a_caller_that_left() -> None:
    served = Served()
    async with served.client() as client:
        asking = asyncio.create_task(client.get("/nothing-read"))
        await served.work.begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert served.count("abandoned") == 0


@pytest.mark.parametrize("path", ["/nothing-read", "/v1/runs/one/watch", "/stream"])
async def test_a_caller_that_stays_gets_the_whole_answer(path: str) -> None:
    served = Served()
    served.work.released.set()
    async with served.client() as client:
        answer = await client.get(path, headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    assert "mine" in answer.text
    assert served.count("ok") == 1


async def test_a_call_without_a_deadline_gets_the_default_one() -> None:
    served = Served(request_seconds=0.05)
    async with served.client() as client:
        answer = await client.get("/nothing-read")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (504, "deadline")
    assert served.work.was_cancelled
    assert served.work.seconds_left is not None


async def test_the_callers_deadline_takes_the_place_of_the_default_one() -> None:
    served = Served(request_seconds=0.01)
    async with served.client() as client:
        asking = asyncio.create_task(client.get("/nothing-read", headers={"x-request-timeout": "60"}))
        await served.work.begun.wait()
        await asyncio.sleep(0.05)  # longer than the default
        served.work.released.set()
        assert (await asking).status_code == 200
    assert served.work.seconds_left is not None
    assert served.work.seconds_left > 1


@pytest.mark.parametrize("path", ["/v1/runs/one", "/long", "/stream", "/v1/runs/one/watch"])
async def test_long_calls_and_event_streams_have_no_default_deadline(path: str) -> None:
    served = Served(request_seconds=0.05)
    async with served.client() as client:
        asking = asyncio.create_task(client.get(path))
        await served.work.begun.wait()
        await asyncio.sleep(0.1)  # longer than the default
        served.work.released.set()
        assert (await asking).status_code == 200
    assert served.work.seconds_left is None


@pytest.mark.parametrize("path", ["/v1/runs/one", "/long"])
async def test_long_calls_end_at_the_deadline_that_their_caller_names(path: str) -> None:
    served = Served(request_seconds=60)
    async with served.client() as client:
        answer = await client.get(path, headers={"x-request-timeout": "0.05"})
    assert answer.status_code == 504


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e300", "soon", ""])
async def test_a_deadline_that_is_no_time_is_refused(seconds: str) -> None:
    async with Served().client() as client:
        answer = await client.get("/nothing-read", headers={"x-request-timeout": seconds})
    assert answer.status_code == 400


@given(st.text(max_size=200))
def test_only_plain_request_ids_are_taken_over(sent: str) -> None:
    with request(sent, None) as chosen:
        assert chosen.isascii()
        assert 1 <= len(chosen) <= 128
        assert all(letter.isalnum() or letter in "._-" for letter in chosen)


@pytest.mark.parametrize("sent", ["käse".encode(), b"a b", b"x" * 129, b"a\tb", b"{}", "日本".encode()])
async def test_other_request_ids_are_replaced_in_answers(sent: bytes) -> None:
    served = Served()
    served.work.released.set()
    async with served.client() as client:
        answer = await client.get("/nothing-read", headers={b"x-request-id": sent})
    assert answer.headers["x-request-id"].encode() != sent
    assert answer.headers["x-request-id"] == answer.json()


@pytest.mark.parametrize(
    "body",
    [rb'{"run_id": "\ud83d"}', rb'{"methods": ["\ude00"]}', rb'{"\ud800": 1}', rb'{"run_id": "\ude00\ud83d"}'],
)
async def test_half_characters_in_a_body_are_the_callers_fault(body: bytes) -> None:
    served = Served()
    served.work.released.set()
    async with served.client() as client:
        answer = await client.post("/v1/runs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "invalid")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_bodies_of_whole_characters_pass_and_others_do_not(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
        is_whole = True
    except UnicodeEncodeError:
        is_whole = False
    if is_whole:
        refuse_lone_surrogates(value)
    else:
        with pytest.raises(InvalidRequest) as refused:
            refuse_lone_surrogates(value)
        str(refused.value).encode()


@given(st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010)))
def test_the_replacement_leaves_whole_text(text: str) -> None:
    assert has_lone_surrogates(text) == (text != without_lone_surrogates(text))
    without_lone_surrogates(text).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/other/things", "{}", 400),
        ("POST", "/v1/other/things", "[]", 400),
        ("POST", "/v1/other/things", "{" + " " * 10_001 + "}", 413),
        ("GET", "/v1/other/things", "", 405),
        ("GET", "/v1/other/unknown", "", 404),
    ],
)
async def test_errors_of_a_registered_prefix_have_its_own_form(method: str, path: str, body: str, status: int) -> None:
    async with Served().client() as client:
        answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
        elsewhere = await client.get("/v1/unknown")
    assert answer.status_code == status
    assert answer.json().keys() == {"other", "kind"}
    assert elsewhere.json().keys() == {"error"}


async def test_a_body_in_parts_without_a_length_is_bounded_too() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 1000

    async with Served().client() as client:
        answer = await client.post("/plain", content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyRing]:
    path = tmp_path / "keys.yaml"
    path.write_text(f"- {{name: reader, key: {KEY}, scope: read}}\n")
    yield KeyRing.from_file(path)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (KEY, 200),
        (basic("", KEY), 200),
        (basic("anybody", KEY), 200),
        (basic(KEY, ""), 200),
        (basic("", "wrong"), 401),
        (basic("", ""), 401),
        ("Basic not-base64!", 401),
        ("Basic", 401),
        ("", 401),
    ],
)
async def test_keys_are_taken_as_bearer_or_as_basic_credentials(keys: KeyRing, sent: str, status: int) -> None:
    served = Served(keys)
    served.work.released.set()
    async with served.client(headers={"authorization": sent}) as client:
        answer = await client.get("/nothing-read")
    assert answer.status_code == status
    # what makes a browser ask for a password
    assert answer.headers.get("www-authenticate", "").startswith("Basic realm=") is (status == 401)


async def test_a_key_in_the_url_of_an_ordinary_client_works(keys: KeyRing) -> None:
    served = Served(keys)
    served.work.released.set()
    async with served.client() as client:
        assert (await client.get(f"http://:{KEY}@test/nothing-read")).status_code == 200


async def test_openapi_names_the_failures_that_are_given(keys: KeyRing) -> None:
    async with Served(keys).client(headers={"authorization": KEY}) as client:
        document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/runs/{run_id}"]["get"]
    assert operation["responses"].keys() >= {"200", "400", "401", "403", "404", "409", "413", "429", "503", "504"}
    assert "422" not in json.dumps(document)
    assert [(row["name"], row["in"]) for row in operation["parameters"]] == [("run_id", "path")]
    other = document["paths"]["/v1/other/things"]["post"]["responses"]["400"]
    assert other["content"]["application/json"]["schema"]["required"] == ["other", "kind"]
    assert document["paths"]["/livez"]["get"]["security"] == []


async def test_health_is_what_readiness_is() -> None:
    async with Served().client() as client:
        assert (await client.get("/health")).status_code == (await client.get("/readyz")).status_code == 503


def test_too_many_large_bodies_at_once_are_refused() -> None:
    from searchrl.errors import Overloaded
    from searchrl.platform.caller_watch import BodyBudget

    budget = BodyBudget(10, max_bodies=2)
    budget.take(10)
    budget.take(10)
    with pytest.raises(Overloaded):
        budget.take(1)
    budget.give_back(10)
    budget.take(1)
