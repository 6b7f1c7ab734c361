"""Tests that a deadline is propagated with its request, from REST through one service to the next over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1.retriever_pb2_grpc import RetrieverServicer
from searchrl.errors import DeadlineExceeded
from searchrl.platform.request_context import remaining_seconds, request_id
from tests.contract.harness import RETRIEVER_MIRRORS, BothTransports, serving_retriever


class BackRetriever(RetrieverServicer):
    """Records the deadline and id of each request; never answers a query "hang"."""

    def __init__(self) -> None:
        self.seconds: list[float | None] = []
        self.request_ids: list[str] = []
        self.abandoned = asyncio.Event()

    async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
        self.seconds.append(remaining_seconds())
        self.request_ids.append(request_id())
        if "hang" in request.queries:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.abandoned.set()
                raise
        return pb.SearchResponse(queries=[pb.QueryResults() for _ in request.queries])

    async def BuildIndex(self, request: pb.BuildIndexRequest, context: object) -> AsyncIterator[pb.BuildIndexProgress]:
        yield pb.BuildIndexProgress(phase="reading")
        await asyncio.Event().wait()


class FrontRetriever(RetrieverServicer):
    """Forwards each search to the service behind it."""

    def __init__(self, client: RetrieverClient) -> None:
        self._client = client

    async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
        results = await self._client.search(list(request.queries), request.top_k, {})
        return pb.SearchResponse(queries=[pb.QueryResults() for _ in results])


@asynccontextmanager
async def chain(back: BackRetriever) -> AsyncIterator[BothTransports]:
    async with (
        serving_retriever(back) as behind,
        RetrieverClient(behind.grpc_target) as client,
        serving_retriever(FrontRetriever(client)) as front,
    ):
        yield front


async def test_a_rest_deadline_and_request_id_reach_the_service_behind() -> None:
    back = BackRetriever()
    async with chain(back) as front, httpx.AsyncClient(trust_env=False) as caller:
        response = await caller.post(
            f"{front.http_url}/v1/search",
            json={"queries": ["q"]},
            headers={"x-request-timeout": "9", "x-request-id": "r-42"},
        )
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "r-42"
    assert back.request_ids == ["r-42"]
    assert back.seconds[0] is not None and 5 < back.seconds[0] <= 9.1  # gRPC rounds up


async def test_a_deadline_that_passes_ends_the_entire_chain() -> None:
    back = BackRetriever()
    async with chain(back) as front, httpx.AsyncClient(trust_env=False) as caller:
        response = await caller.post(
            f"{front.http_url}/v1/search", json={"queries": ["hang"]}, headers={"x-request-timeout": "0.3"}
        )
        async with asyncio.timeout(10):
            await back.abandoned.wait()
    assert response.status_code == 504
    assert response.json()["error"]["kind"] == "deadline"


async def test_a_grpc_deadline_is_passed_on_too() -> None:
    back = BackRetriever()
    async with chain(back) as front:
        async with RetrieverClient(front.grpc_target, timeout_seconds=4.0) as caller:
            await caller.search(["q"], 3, {})
        async with RetrieverClient(front.grpc_target, timeout_seconds=0.3) as hurried:
            with pytest.raises(DeadlineExceeded):
                await hurried.search(["hang"], 3, {})
        async with asyncio.timeout(10):
            await back.abandoned.wait()
    assert back.seconds[0] is not None and back.seconds[0] <= 4.1  # gRPC rounds up


@pytest.mark.parametrize("header", ["soon", "-1", "0", "nan"])
async def test_an_invalid_deadline_is_refused(header: str) -> None:
    async with serving_retriever(BackRetriever()) as both, httpx.AsyncClient(trust_env=False) as caller:
        response = await caller.post(
            f"{both.http_url}/v1/search", json={"queries": ["q"]}, headers={"x-request-timeout": header}
        )
    assert response.status_code == 400


async def test_a_deadline_that_passes_in_the_middle_of_a_stream_is_its_last_event() -> None:
    request = pb.BuildIndexRequest(corpus="c")
    async with serving_retriever(BackRetriever()) as both:
        answer = await both.over_http(RETRIEVER_MIRRORS[2], request, headers={"x-request-timeout": "0.3"})
    assert both.http_status == 200
    assert answer.messages == [{"phase": "reading"}]
    assert answer.error == "deadline"
