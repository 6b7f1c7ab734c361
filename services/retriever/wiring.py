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
from services.retriever.batching.fair_queue import BatchKey
from services.retriever.batching.query_batcher import BatchLimits, QueryBatcher
from services.retriever.caching.memory_cache import MemoryCache
from services.retriever.caching.ranking_cache import RankingCache
from services.retriever.caching.redis_cache import RedisCache
from services.retriever.encoders.encoder_description import EncoderDescription
from services.retriever.encoders.sentence_encoder import SentenceEncoder, open_described
from services.retriever.grpc_servicer import ADMIN_METHODS, FULL_NAME, RetrieverServicer
from services.retriever.http_routes import mirror_routes, retrieve_router
from services.retriever.indexes.active_index import ActiveIndex
from services.retriever.indexes.approximate.search_effort import SearchEffort
from services.retriever.indexes.generation import Generation, open_generation
from services.retriever.indexes.index_store import IndexStore
from services.retriever.indexes.manifest import Manifest, check_slowly, is_checked_later
from services.retriever.indexes.ranked_rows import Ranker
from services.retriever.metrics import RetrieverMetrics
from services.retriever.search_service import BuildRules, SearchLimits, SearchService
from services.retriever.settings import RetrieverSettings


class IndexHealth(Health):
    """Ready only while an index is in service."""

    def __init__(self) -> None:
        super().__init__()
        self._index: ActiveIndex | None = None

    def watch(self, index: ActiveIndex) -> None:
        """Make readiness depend on this index."""
        self._index = index

    def set_ready(self) -> None:
        if self._index is not None and not self._index.is_loaded:
            self.set_not_ready(self._index.reason)
        else:
            super().set_ready()


def build_active_index(
    settings: RetrieverSettings, store: IndexStore, metrics: RetrieverMetrics, health: IndexHealth
) -> ActiveIndex:
    """The index in service, which ``load_current`` loads later; ``health`` depends on it from now on."""
    open_from = partial(
        open_generation,
        open_encoder=_encoder_opener(settings),
        verification=settings.verify,
        effort=SearchEffort(settings.faiss.nprobe, settings.faiss.ef_search),
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
    options = settings.cache
    if options.redis_url is None:
        return None
    return RedisCache(
        options.redis_url.get_secret_value(),
        metrics,
        timeout_seconds=options.redis_timeout_milliseconds / 1000,
        keep_seconds=options.redis_keep_seconds,
        probe_seconds=options.redis_probe_seconds,
    )


def build_service(
    settings: RetrieverSettings,
    index: ActiveIndex,
    store: IndexStore,
    redis_cache: RedisCache | None,
    metrics: RetrieverMetrics,
    health: Health | None = None,
) -> SearchService:
    """The search service with its batcher, cache and limits; starts the batcher's thread."""
    limits, batching = settings.limits, settings.batching
    return SearchService(
        index,
        store,
        QueryBatcher(
            BatchLimits(
                batching.max_batch,
                batching.max_waiting,
                batching.wait_milliseconds / 1000,
                not_ready_after=batching.not_ready_after,
            ),
            metrics,
            health,
            partial(_probe_target, index),
        ),
        RankingCache(
            MemoryCache(settings.cache.memory_entries, settings.cache.memory_megabytes << 20), redis_cache, metrics
        ),
        metrics,
        SearchLimits(
            default_top_k=limits.default_top_k,
            max_top_k=limits.max_top_k,
            max_queries=limits.max_queries,
            max_results=limits.max_results,
            max_query_characters=limits.max_query_characters,
        ),
        BuildRules(settings.builds.corpus_root, _dense_options(settings)),
    )


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


def _encoder_opener(settings: RetrieverSettings) -> Callable[[EncoderDescription], SentenceEncoder]:
    """Opens each model once, so that a new generation of the same model costs no second copy.

    A model stays in memory while a generation in service, or an older one that running requests still use, refers to
    it. The opener is called in worker threads, but by one at a time: ``ActiveIndex`` holds its lock while it opens.
    """
    opened: WeakValueDictionary[EncoderDescription, SentenceEncoder] = WeakValueDictionary()

    def opener(description: EncoderDescription) -> SentenceEncoder:
        encoder = opened.get(description)
        if encoder is None:
            encoder = open_described(description, settings.encoder.folder, settings.encoder.device)
            opened[description] = encoder
        return encoder

    return opener


def _probe_target(index: ActiveIndex) -> tuple[BatchKey, Ranker] | None:
    """Key and ranker for a probe of the index in service; None while there is none. Called in the batcher's thread."""
    if not index.is_loaded:
        return None
    generation = index.get()
    mode = generation.default_mode
    return BatchKey(generation.id, mode, 1, ()), generation.rankers[mode]


def _dense_options(settings: RetrieverSettings) -> tuple[str, ...]:
    if settings.encoder.folder is None:
        return ()
    return ("--encoder", str(settings.encoder.folder), "--device", settings.encoder.device)
