"""Which generation is being served, and how does another one take its place without a failed request?"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from searchrl.errors import ConfigurationError, Conflict, ServiceError, Unavailable
from services.retriever.indexes.generation import Generation
from services.retriever.indexes.index_store import IndexStore
from services.retriever.indexes.manifest import Manifest
from services.retriever.metrics import RetrieverMetrics

logger = logging.getLogger(__name__)


class ActiveIndex:
    """Holds the generation in service. A new one is loaded beside it and put in its place by one assignment;
    requests that began with the old one end with it.
    """

    def __init__(
        self,
        store: IndexStore,
        open_generation: Callable[[Path], Generation],
        metrics: RetrieverMetrics,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._open_generation = open_generation
        self._metrics = metrics
        self._on_change = on_change
        self._generation: Generation | None = None
        self._swapping = asyncio.Lock()
        self._failed: str | None = None
        self.reason = "the index is not loaded yet"

    @property
    def is_loaded(self) -> bool:
        return self._generation is not None

    def get(self) -> Generation:
        """The generation in service.

        Raises:
            Unavailable: there is none; the message says why.
        """
        if self._generation is None:
            raise Unavailable(self.reason)
        return self._generation

    async def load_current(self) -> None:
        """Put the generation that ``current`` names into service; none at all is noted as the ``reason``.

        Raises:
            ConfigurationError: there is one, but it is unusable.
        """
        async with self._swapping:
            name = self._store.current()
            if name is None:
                self.reason = (
                    f"no index in {self._store.folder}: build one with python -m services.retriever.build_index"
                )
            elif self._generation is None or self._generation.id != name:
                try:
                    folder = self._store.generation_folder(name)
                except ServiceError as error:
                    raise ConfigurationError(f"{self._store.folder}: {error}, but 'current' names it") from error
                self._put_in_service(await asyncio.to_thread(self._open_generation, folder))

    async def activate(self, name: str) -> Manifest:
        """Load a generation, put it in service and make it the current one. On failure the old one goes on.

        Raises:
            NotFound: there is no such generation.
            Conflict: it is damaged or does not fit this service.
        """
        folder = self._store.generation_folder(name)
        async with self._swapping:
            if self._generation is None or self._generation.id != name:
                try:
                    loaded = await asyncio.to_thread(self._open_generation, folder)
                except ConfigurationError as error:
                    self._metrics.index_failures.inc()
                    raise Conflict(str(error)) from error
                self._put_in_service(loaded)
            self._store.activate(name)
            return self.get().manifest

    async def follow(self, interval_seconds: float) -> None:
        """Keep in step with ``current``, which the build command or another replica may change; never returns."""
        name: str | None = None
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                name = self._store.current()
                if name not in (None, self._failed, self._generation.id if self._generation else None):
                    await self.load_current()
            except (ConfigurationError, OSError) as error:
                self._failed = name
                self._metrics.index_failures.inc()
                logger.error("the current generation cannot be loaded, the old one stays in service: %s", error)

    def _put_in_service(self, generation: Generation) -> None:
        old, self._generation = self._generation, generation
        self._failed = None
        self.reason = "ok"
        if old is not None:
            self._metrics.index_info.remove(old.id, old.manifest.kind)
        self._metrics.index_info.labels(generation=generation.id, kind=generation.manifest.kind).set(1)
        self._metrics.index_created.set(datetime.fromisoformat(generation.manifest.created).timestamp())
        self._metrics.index_passages.set(len(generation.passages))
        self._metrics.index_swaps.inc()
        logger.info("index generation in service", extra={"data": {"generation": generation.id}})
        self._on_change()
