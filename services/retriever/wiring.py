"""Builds the retriever from its settings; the only module that knows the concrete classes."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from prometheus_client import REGISTRY, CollectorRegistry

from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1.retriever_pb2_grpc import add_RetrieverServicer_to_server
from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.serve import ServiceSpec
from services.retriever.encoders.base import Encoder, EncoderDescription, EncoderSettings
from services.retriever.encoders.open_encoder import reopen_encoder
from services.retriever.generations.build_jobs import BuildJobs
from services.retriever.generations.generation import Generation, open_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.grpc_servicer import ADMIN_METHODS, RetrieverServicer
from services.retriever.http_routes import rest_router, retrieve_router
from services.retriever.indexes.manifest import Manifest, check_slowly, is_checked_later
from services.retriever.metrics import RetrieverMetrics
from services.retriever.pipeline import SearchPipeline, choose_probe
from services.retriever.search_service import SearchService
from services.retriever.serving.active_index import ActiveIndex, IndexHealth
from services.retriever.serving.query_batcher import QueryBatcher
from services.retriever.serving.redis_cache import RedisCache
from services.retriever.settings import RetrieverSettings

logger = logging.getLogger(__name__)


def build_active_index(
    settings: RetrieverSettings, store: IndexStore, metrics: RetrieverMetrics, health: IndexHealth
) -> ActiveIndex:
    """The index in service, which ``load_current`` loads later; ``health`` depends on it from now on."""
    open_from = partial(
        open_generation,
        open_encoder=_share_encoders(settings.encoder),
        verification=settings.verify,
        effort=settings.faiss,
        exact=settings.exact,
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
    batcher = QueryBatcher(settings.batching, metrics, health, partial(choose_probe, index))
    pipeline = SearchPipeline(settings.cache, redis_cache, batcher, metrics)
    builds = BuildJobs(store.folder, index.activate, settings.builds, settings.encoder.build_arguments())
    return SearchService(index, store, pipeline, builds, metrics, settings.limits)


def build_spec(settings: RetrieverSettings) -> ServiceSpec:
    """Build everything that the process serves; call inside the running event loop.

    Both servers, the index follower and the Redis tasks run in that loop. Ranking runs in the query batcher's thread,
    reading passages in the pipeline's reader threads, and loading an index in a worker thread of the loop.
    """
    metrics, health, store = RetrieverMetrics(), IndexHealth(), IndexStore(settings.index_dir)
    index = build_active_index(settings, store, metrics, health)
    redis_cache = build_redis_cache(settings, metrics)
    service = build_service(settings, index, store, redis_cache, metrics, health)
    background: list[asyncio.Task[None]] = []

    async def start() -> None:
        if redis_cache is not None:
            await redis_cache.start()
        if interrupted := store.interrupted_build():
            logger.error("%s", interrupted)
        # Before the follower starts: an index that cannot be used must end the start, while the follower only logs it.
        await index.load_current()
        if settings.require_index and not index.is_loaded:
            raise ConfigurationError(index.reason)
        if settings.follow_seconds:
            background.append(asyncio.create_task(index.follow(settings.follow_seconds)))

    async def drain() -> None:
        # The follower ends first, so that no generation is loaded for a service that is closing.
        for task in background:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        service.close()
        if redis_cache is not None:
            await redis_cache.close()

    spec = service_spec(service, KeyRing.from_file(settings.auth_keys_file), health, REGISTRY)
    return replace(spec, start=start, drain=drain)


def service_spec(service: SearchService, keys: KeyRing, health: Health, registry: CollectorRegistry) -> ServiceSpec:
    """Describe the retriever to the servers."""
    servicer = RetrieverServicer(service)
    return ServiceSpec(
        name="retriever",
        full_name=pb.DESCRIPTOR.services_by_name["Retriever"].full_name,
        register=partial(add_RetrieverServicer_to_server, servicer),
        routers=[rest_router(servicer), retrieve_router(service)],
        registry=registry,
        keys=keys,
        health=health,
        admin_methods=ADMIN_METHODS,
    )


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
