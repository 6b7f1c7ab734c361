"""Answers with many results are encoded outside the event loop, on every route."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from searchrl.contracts.v1 import retriever_pb2 as pb
from services.retriever import grpc_servicer, http_routes
from services.retriever.generations.index_store import IndexStore
from services.retriever.grpc_servicer import RetrieverServicer
from services.retriever.http_routes import retrieve_router
from services.retriever.indexes.manifest import Manifest
from services.retriever.search_service import SearchService
from services.retriever.serving.active_index import ActiveIndex

QUERIES = ["Oslo Norway"] * 310  # of one result each: more than a small answer has


@pytest.fixture
async def service(
    make_service: Callable[..., SearchService], active_index: ActiveIndex, store: IndexStore, corpus: Path,
    build_bm25: Callable[..., Manifest],
) -> SearchService:  # fmt: skip
    build_bm25(store, corpus)
    await active_index.load_current()
    return make_service()


def threads_of(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> set[int]:
    """The threads that call a function from now on."""
    called, function = set[int](), getattr(module, name)

    def recorded(*arguments: object) -> Any:
        called.add(threading.get_ident())
        return function(*arguments)

    monkeypatch.setattr(module, name, recorded)
    return called


async def test_results_become_messages_beside_the_event_loop(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threads_of(monkeypatch, grpc_servicer, "result_to_wire")
    answer = await RetrieverServicer(service).Search(pb.SearchRequest(queries=QUERIES, top_k=1), None)
    assert [query.results[0].passage.id for query in answer.queries] == ["c"] * len(QUERIES)
    assert threads and threading.get_ident() not in threads


async def test_passages_become_messages_beside_the_event_loop(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threads_of(monkeypatch, grpc_servicer, "passage_to_wire")
    answer = await RetrieverServicer(service).GetPassages(pb.GetPassagesRequest(ids=["c", "nobody", "a"]), None)
    assert ([passage.id for passage in answer.passages], list(answer.missing)) == (["c", "a"], ["nobody"])
    assert threads and threading.get_ident() not in threads


async def test_rows_of_retrieve_are_encoded_beside_the_event_loop(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threads_of(monkeypatch, http_routes, "_as_search_r1")
    app = FastAPI()
    app.include_router(retrieve_router(service))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/retrieve", json={"queries": QUERIES, "topk": 1})
    assert [rows[0]["id"] for rows in answer.json()["result"]] == ["c"] * len(QUERIES)
    assert threads and threading.get_ident() not in threads
