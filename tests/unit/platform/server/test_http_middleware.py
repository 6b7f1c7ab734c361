"""The gate of every HTTP request: disconnected callers, the default deadline, request ids, keys and body sizes."""

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.errors import Overloaded
from searchrl.platform.request_context import request
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.caller_watch import BodyBudget
from tests.fakes.served_application import Served
from tests.unit.platform.conftest import KEY


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
async def test_a_caller_that_stays_gets_the_complete_answer(path: str) -> None:
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


async def test_a_body_in_parts_without_a_length_is_bounded_too() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 1000

    async with Served().client() as client:
        answer = await client.post("/plain", content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


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
    # this header makes a browser ask for a password
    assert answer.headers.get("www-authenticate", "").startswith("Basic realm=") is (status == 401)


async def test_a_key_in_the_url_of_an_ordinary_client_works(keys: KeyRing) -> None:
    served = Served(keys)
    served.work.released.set()
    async with served.client() as client:
        assert (await client.get(f"http://:{KEY}@test/nothing-read")).status_code == 200


def test_too_many_large_bodies_at_once_are_refused() -> None:
    budget = BodyBudget(10, max_bodies=2)
    budget.take(10)
    budget.take(10)
    with pytest.raises(Overloaded):
        budget.take(1)
    budget.give_back(10)
    budget.take(1)
