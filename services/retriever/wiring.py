"""Builds the retriever from its settings; the only module that knows the concrete classes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import grpc
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from searchrl.contracts.v1 import retriever_pb2_grpc as rpc
from searchrl.platform import grpc_server, http_app
from searchrl.platform.auth import KeyRing
from searchrl.platform.health import Health
from services.retriever.encoders.base import Encoder, EncoderDescription, EncoderSettings
from services.retriever.encoders.open_encoder import reopen_encoder
from services.retriever.generations.build_jobs import BuildJobs
from services.retriever.generations.generation import Generation, open_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.grpc_servicer import ADMIN_METHODS, FULL_NAME, RetrieverServicer
from services.retriever.http_routes import mirror_routes, retrieve_router
from services.retriever.indexes.manifest import Manifest, check_slowly, is_checked_later
from services.retriever.metrics import RetrieverMetrics
from services.retriever.pipeline import SearchPipeline, choose_probe
from services.retriever.search_service import SearchService
from services.retriever.serving.active_index import ActiveIndex, IndexHealth
from services.retriever.serving.query_batcher import QueryBatcher
from services.retriever.serving.ranking_cache import RankingCache
from services.retriever.serving.redis_cache import RedisCache
from services.retriever.settings import RetrieverSettings


def build_active_index(
    settings: RetrieverSettings, store: IndexStore, metrics: RetrieverMetrics, health: IndexHealth
) -> ActiveIndex:
    """The index in service, which ``load_current`` loads later; ``health`` depends on it from now on."""
    open_from = partial(
        open_generation,
        open_encoder=_share_encoders(settings.encoder),
        verification=settings.verify,
        effort=settings.faiss,
    )
    open_folder: Callable[[Path], Generation] = open_from

    async def check_files(manifest: Manifest) -> None:
        if is_checked_later(manifest, settings.verify):
            folder = store.generation_folder(manifest.generation)
            await check_slowly(folder, manifest, settings.check_megabytes_per_second * 1e6)

    index = ActiveIndex(store, open_folder, metrics, on_change=health.set_ready, health=health, check_files=check_files)
    health.watch(index)
    return index


def build_redis_cache(settings: RetrieverSettings, metrics: RetrieverMetrics) -> RedisCache | None:
    """The shared cache; None if no URL is set. Call inside the running event loop."""
    return RedisCache(settings.cache, metrics) if settings.cache.redis_url is not None else None


def build_service(
    settings: RetrieverSettings,
    index: ActiveIndex,
    store: IndexStore,
    redis_cache: RedisCache | None,
    metrics: RetrieverMetrics,
    health: Health | None = None,
) -> SearchService:
    """The search service with its pipeline and limits; starts the batcher's thread."""
    cache = RankingCache(settings.cache, redis_cache, metrics)
    batcher = QueryBatcher(settings.batching, metrics, health, partial(choose_probe, index))
    builds = BuildJobs(store.folder, index.activate, settings.builds, settings.encoder.build_arguments())
    return SearchService(index, store, SearchPipeline(cache, batcher, metrics), builds, metrics, settings.limits)


def build_grpc_server(
    service: SearchService, keys: KeyRing, health: Health, registry: CollectorRegistry
) -> grpc.aio.Server:
    """The gRPC server; call inside the running event loop."""
    return grpc_server.build_grpc_server(
        lambda server: rpc.add_RetrieverServicer_to_server(RetrieverServicer(service), server),
        full_name=FULL_NAME,
        keys=keys,
        health=health,
        admin_methods=ADMIN_METHODS,
        registry=registry,
    )


def build_http_app(service: SearchService, keys: KeyRing, health: Health, registry: CollectorRegistry) -> FastAPI:
    """The REST application."""
    routers = [mirror_routes(RetrieverServicer(service)), retrieve_router(service)]
    return http_app.build_http_app("SearchRL retriever", routers, keys=keys, health=health, registry=registry)


def _share_encoders(settings: EncoderSettings) -> Callable[[EncoderDescription], Encoder]:
    """Return a function that opens each model once, so that a new generation of the same model costs no second copy.

    A model stays in memory while a generation in service, or an older one that running requests still use, refers to
    it. The function is called in worker threads, but by one at a time: ``ActiveIndex`` holds its lock while it opens.
    """
    opened: WeakValueDictionary[EncoderDescription, Encoder] = WeakValueDictionary()

    def open_once(description: EncoderDescription) -> Encoder:
        encoder = opened.get(description)
        if encoder is None:
            encoder = reopen_encoder(description, settings)
            opened[description] = encoder
        return encoder

    return open_once
