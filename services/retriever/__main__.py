"""Starts the retriever: ``python -m services.retriever``. Settings come from the environment.

Both servers, the index follower and the Redis tasks run in one event loop. Ranking runs in the query batcher's thread,
reading passages in the pipeline's reader threads, and loading an index in a worker thread of the loop.
"""

import asyncio
import contextlib
import logging

from searchrl.errors import ConfigurationError
from services.retriever.settings import RetrieverSettings

logger = logging.getLogger(__name__)


async def serve(settings: RetrieverSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    from prometheus_client import REGISTRY

    from searchrl.platform.auth import KeyRing
    from searchrl.platform.server_runner import run_servers
    from services.retriever import wiring
    from services.retriever.generations.index_store import IndexStore
    from services.retriever.metrics import RetrieverMetrics
    from services.retriever.serving.active_index import IndexHealth

    metrics, health, store = RetrieverMetrics(), IndexHealth(), IndexStore(settings.index_dir)
    keys = KeyRing.from_file(settings.auth_keys_file)
    index = wiring.build_active_index(settings, store, metrics, health)
    redis_cache = wiring.build_redis_cache(settings, metrics)
    service = wiring.build_service(settings, index, store, redis_cache, metrics, health)
    background: list[asyncio.Task[None]] = []

    async def start() -> None:
        if redis_cache is not None:
            await redis_cache.start()
        if interrupted := store.interrupted_build():
            logger.error("%s", interrupted)
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

    # A gRPC server belongs to the event loop it was built in, so both are built here and not before ``asyncio.run``.
    await run_servers(
        wiring.build_grpc_server(service, keys, health, REGISTRY),
        wiring.build_http_app(service, keys, health, REGISTRY),
        settings=settings,
        health=health,
        start=start,
        drain=drain,
    )


def main() -> None:
    from searchrl.platform.server_runner import run_service

    run_service(RetrieverSettings, serve, "retriever")


if __name__ == "__main__":
    main()
