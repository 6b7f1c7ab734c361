"""Tests that API keys permit the same calls over both transports."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1.retriever_pb2_grpc import RetrieverServicer, RetrieverStub
from searchrl.errors import Forbidden, Unauthenticated
from tests.contract.harness import RETRIEVER_MIRRORS, BothTransports, serving_retriever

SEARCH, LIST, BUILD = RETRIEVER_MIRRORS
KEYS = "- {name: reader, key: r-secret, scope: read}\n- {name: operator, key: a-secret, scope: admin}\n"


class OpenRetriever(RetrieverServicer):
    """Answers every call, so that only the platform can refuse one."""

    async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
        return pb.SearchResponse(generation="g1")

    async def ListIndexes(self, request: pb.ListIndexesRequest, context: object) -> pb.ListIndexesResponse:
        return pb.ListIndexesResponse(indexes=[pb.IndexGeneration(generation="g1")])

    async def BuildIndex(self, request: pb.BuildIndexRequest, context: object) -> AsyncIterator[pb.BuildIndexProgress]:
        yield pb.BuildIndexProgress(phase="done")


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[BothTransports]:
    keys_file = tmp_path / "keys.yaml"
    keys_file.write_text(KEYS)
    async with serving_retriever(OpenRetriever(), keys_file) as both:
        yield both


async def errors(both: BothTransports, key: str | None) -> dict[str, tuple[str, str]]:
    """Return the error kind of each call over (gRPC, HTTP)."""
    caller = both.with_key(key)
    calls = {"Search": SEARCH, "ListIndexes": LIST, "BuildIndex": BUILD}
    return {
        name: (
            (await caller.over_grpc(RetrieverStub, name, mirror.request())).error,
            (await caller.over_http(mirror, mirror.request())).error,
        )
        for name, mirror in calls.items()
    }


@pytest.mark.parametrize("key", [None, "guess", "r-secret2", ""])
async def test_no_key_and_a_wrong_key_permit_no_call(guarded: BothTransports, key: str | None) -> None:
    refused = ("unauthenticated", "unauthenticated")
    assert await errors(guarded, key) == {"Search": refused, "ListIndexes": refused, "BuildIndex": refused}


async def test_a_read_key_reads_and_does_not_administer(guarded: BothTransports) -> None:
    forbidden = ("forbidden", "forbidden")
    assert await errors(guarded, "r-secret") == {"Search": ("", ""), "ListIndexes": forbidden, "BuildIndex": forbidden}


async def test_an_admin_key_permits_every_call(guarded: BothTransports) -> None:
    assert set((await errors(guarded, "a-secret")).values()) == {("", "")}


async def test_probes_and_metrics_need_no_key(guarded: BothTransports) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await client.get(guarded.http_url + path)).status_code == 200
    async with grpc.aio.insecure_channel(guarded.grpc_target) as channel:
        state = await cast(Any, health_pb2_grpc.HealthStub(channel)).Check(health_pb2.HealthCheckRequest())
    assert state.status == health_pb2.HealthCheckResponse.SERVING


async def test_our_client_sends_its_key_and_names_what_is_wrong_with_it(guarded: BothTransports) -> None:
    async with RetrieverClient(guarded.grpc_target, key="r-secret") as reader:
        assert await reader.search([], 3, {}) == []
        with pytest.raises(Forbidden, match="admin"):
            await reader.list_indexes()
    async with RetrieverClient(guarded.grpc_target) as stranger:
        with pytest.raises(Unauthenticated, match="Authorization"):
            await stranger.search(["q"], 3, {})


async def test_a_key_is_also_taken_from_its_own_header(guarded: BothTransports) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(f"{guarded.http_url}/v1/search", json={}, headers={"x-api-key": "r-secret"})
    assert response.status_code == 200
