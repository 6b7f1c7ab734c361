"""Numbers in the retriever's messages: byte counts beyond 32 bits."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from searchrl.contracts.v1 import retriever_pb2 as pb
from services.retriever.generations.build_jobs import BuildStep
from services.retriever.grpc_servicer import RetrieverServicer
from services.retriever.http_routes import rest_router

WIKIPEDIA_BYTES = 14_258_231_296  # the size of a corpus of Wikipedia, far beyond 32 bits


async def test_the_progress_of_a_build_counts_bytes_beyond_two_gibibytes() -> None:
    async def build_index(corpus: str, kind: str, activate: bool) -> AsyncIterator[BuildStep]:
        yield BuildStep("read", WIKIPEDIA_BYTES - 1, WIKIPEDIA_BYTES)

    service: Any = SimpleNamespace(build_index=build_index)
    (step,) = [step async for step in RetrieverServicer(service).BuildIndex(pb.BuildIndexRequest(), None)]
    assert (step.done, step.total) == (WIKIPEDIA_BYTES - 1, WIKIPEDIA_BYTES)
    app = FastAPI()
    app.include_router(rest_router(RetrieverServicer(service)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/v1/admin/indexes", json={"corpus": "c", "kind": "bm25"})
    # Protobuf's JSON writes 64 bits as text: numbers of JavaScript are exact to 2**53 only.
    assert f'"done":"{WIKIPEDIA_BYTES - 1}","total":"{WIKIPEDIA_BYTES}"' in answer.text
