"""REST routes derived from rpcs: texts that cannot be encoded, and large answers encoded beside the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from searchrl.contracts.v1 import passage_pb2
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.platform.health import Health
from searchrl.platform.server import answer_encoder
from searchrl.platform.server.answer_encoder import message_to_bytes, message_to_json
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.message_models import model_of
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from tests.fakes.served_application import Served

PATIENCE = 30.0  # seconds; reached only if the event loop is blocked
JSON = {"content-type": "application/json"}
LARGE = 2 * answer_encoder._SMALL_BYTES  # bytes; above the size up to which answers are encoded in the event loop


class Echo:
    """A retriever that returns each query as a passage; ``"large"`` returns a long text."""

    async def Search(self, message: pb.SearchRequest, context: object) -> pb.SearchResponse:
        texts = ["x" * LARGE if query == "large" else query for query in message.queries]
        found = [passage_pb2.SearchResult(passage=passage_pb2.Passage(id="p", text=text)) for text in texts]
        return pb.SearchResponse(queries=[pb.QueryResults(results=[one]) for one in found], generation="g")


@asynccontextmanager
async def searching() -> AsyncIterator[httpx.AsyncClient]:
    mirror = Mirror("POST", "/v1/search", "Search", pb.SearchRequest, pb.SearchResponse, batch="queries")
    router = mirror_router(Echo(), [mirror], "search")
    app = build_http_app("SearchRL echo", [router], keys=KeyRing(), health=Health(), registry=CollectorRegistry())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [rb'{"run_id": "\ud83d"}', rb'{"methods": ["\ude00"]}', rb'{"\ud800": 1}', rb'{"run_id": "\ude00\ud83d"}'],
)
async def test_lone_surrogates_in_a_body_are_an_invalid_request(body: bytes) -> None:
    served = Served()
    served.work.released.set()
    async with served.client() as client:
        answer = await client.post("/v1/runs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "invalid")


async def test_a_lone_surrogate_in_one_text_of_a_batch_refuses_no_other() -> None:
    async with searching() as client:
        answer = await client.post("/v1/search", content=rb'{"queries": ["one \ud83d", "\ude00", "two"]}', headers=JSON)
    assert answer.status_code == 200
    texts = [query["results"][0]["passage"]["text"] for query in answer.json()["queries"]]
    assert texts == ["one \ufffd", "\ufffd", "two"]


@pytest.mark.parametrize("body", [rb'{"queries": ["q"], "mode": "\ud83d"}', rb'{"filters": {"\ud83d": "x"}}'])
async def test_a_lone_surrogate_outside_the_batch_refuses_the_request(body: bytes) -> None:
    async with searching() as client:
        answer = await client.post("/v1/search", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "invalid")


@pytest.mark.parametrize("done", [0, 2**62])
def test_a_64_bit_integer_is_described_as_the_text_that_an_answer_has_and_as_the_number_that_a_request_has(
    done: int,
) -> None:
    model = model_of(pb.BuildIndexProgress)
    given = message_to_json(pb.BuildIndexProgress(done=done))["done"]
    assert given == str(done)
    assert model.model_json_schema(mode="serialization")["properties"]["done"]["type"] == "string"
    assert model.model_json_schema()["properties"]["done"]["type"] == "integer"
    assert [model.model_validate({"done": value}).model_dump()["done"] for value in (done, given)] == [done, done]


async def test_others_are_served_while_a_large_answer_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    started, may_end = threading.Event(), threading.Event()

    def encode(message: pb.SearchResponse) -> bytes:
        started.set()
        assert may_end.wait(PATIENCE), "nobody was served meanwhile"
        return message_to_bytes(message)

    monkeypatch.setattr(answer_encoder, "message_to_bytes", encode)
    async with searching() as client, asyncio.timeout(2 * PATIENCE):
        asking = asyncio.create_task(client.post("/v1/search", json={"queries": ["large"]}))
        assert await asyncio.to_thread(started.wait, PATIENCE)
        probe = await client.get("/livez")
        assert not asking.done()
        may_end.set()
        answer = await asking
    assert (probe.status_code, answer.status_code) == (200, 200)
    assert len(answer.json()["queries"][0]["results"][0]["passage"]["text"]) == LARGE


texts = st.text(max_size=5)
passages = st.builds(passage_pb2.Passage, id=texts, text=texts, metadata=st.dictionaries(texts, texts, max_size=3))
scores = st.floats(allow_nan=False, allow_infinity=False, width=32)
results = st.builds(passage_pb2.SearchResult, passage=passages, score=scores, rank=st.integers(0, 9))
queries = st.builds(pb.QueryResults, results=st.lists(results, max_size=3), error=texts)
answers = st.builds(pb.SearchResponse, queries=st.lists(queries, max_size=3), generation=texts)


@given(answers)
def test_an_answer_encoded_in_parts_is_the_answer(answer: pb.SearchResponse) -> None:
    assert orjson.loads(message_to_bytes(answer)) == orjson.loads(orjson.dumps(message_to_json(answer)))
