"""Provides the servers that ``concurrent_clients`` compares; their vectors are random, so no encoder is involved.

Started by the benchmark: ``python -m tests.bench.retriever.drawn_server --set variant=exact --set listen.http_port=0``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import faiss
import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.serve import run_on_fast_loop
from searchrl.platform.server.server_runner import run_servers
from searchrl.platform.settings import ServiceSettings
from services.retriever.indexes.dense import DenseRanker
from services.retriever.indexes.vectors.base import VectorIndex, Vectors
from services.retriever.indexes.vectors.exact import ExactIndex
from services.retriever.indexes.vectors.faiss_index import FaissIndex
from services.retriever.metrics import RetrieverMetrics
from services.retriever.ranking import RankingScope
from services.retriever.serving.query_batcher import BatchingSettings, QueryBatcher

FAISS_DEFAULT_BLAS_THRESHOLD = 128_000
"""FAISS multiplies matrices from ``batch * dimensions`` of this value on; below it each query scans the index alone."""
SERVER_THREADS = 40  # the default size of the thread pool in which FastAPI runs synchronous handlers
QUERIES = 2048  # different queries, so that no batch consists of equal ones
TOP_K = 3
Ask = Callable[[int], Awaitable[object]]


class DrawnSettings(ServiceSettings):
    """The variant of the server, and the number and size of its vectors."""

    model_config = SettingsConfigDict(env_prefix="BENCH_")

    variant: Literal["plain", "faiss", "exact"] = "exact"
    rows: int = 200_000
    dimensions: int = 384


class DrawnEncoder:
    """Encodes query "17" as row 17 of vectors drawn beforehand."""

    def __init__(self, vectors_QD: Vectors) -> None:
        self._vectors_QD = vectors_QD

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._vectors_QD[[int(text) for text in texts]]


class NoFilter:
    """Metadata without any filter."""

    def rows_with(self, filters: Mapping[str, str]) -> None:
        return None


def per_request(index: faiss.Index, queries_QD: Vectors) -> Ask:
    """Return a search in which each request searches alone in a thread of a pool."""
    pool = ThreadPoolExecutor(SERVER_THREADS)

    async def ask(number: int) -> object:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, index.search, queries_QD[number : number + 1], TOP_K)

    return ask


def batched(index: VectorIndex, queries_QD: Vectors) -> Ask:
    """Return a search in which the retriever's batcher joins requests."""
    batcher = QueryBatcher(BatchingSettings(), RetrieverMetrics(CollectorRegistry()))
    encoder: Any = DrawnEncoder(queries_QD)
    unfiltered: Any = NoFilter()
    ranker = DenseRanker(encoder, index, unfiltered)
    scope = RankingScope("bench", "", "dense", TOP_K, ())

    async def ask(number: int) -> object:
        return await batcher.submit([str(number)], scope, ranker.rank, None)

    return ask


def build_ask(settings: DrawnSettings) -> Ask:
    random = np.random.default_rng(0)
    corpus_ND = random.standard_normal((settings.rows, settings.dimensions), dtype=np.float32)
    queries_QD = random.standard_normal((QUERIES, settings.dimensions), dtype=np.float32)
    faiss.cvar.distance_compute_blas_threshold = FAISS_DEFAULT_BLAS_THRESHOLD if settings.variant == "plain" else 1
    if settings.variant == "exact":
        return batched(ExactIndex(corpus_ND), queries_QD)
    flat = faiss.IndexFlatIP(settings.dimensions)
    flat.add(corpus_ND)
    return per_request(flat, queries_QD) if settings.variant == "plain" else batched(FaissIndex(flat), queries_QD)


async def serve(settings: DrawnSettings) -> None:
    ask, keys, health, registry = build_ask(settings), KeyRing(), Health(), CollectorRegistry()
    router = APIRouter()

    @router.post("/search")
    async def search(request: Request) -> Response:
        await ask(int(orjson.loads(await request.body())["query"]))
        return Response(b"{}", media_type="application/json")

    server = build_grpc_server(lambda _: None, full_name="bench", keys=keys, health=health, registry=registry)
    app = build_http_app("SearchRL bench", [router], keys=keys, health=health, registry=registry)
    await run_servers(server, app, settings=settings, health=health)


if __name__ == "__main__":
    run_on_fast_loop(serve(DrawnSettings.from_environment()))
