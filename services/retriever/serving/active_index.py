"""Holds the index generation in service and replaces it without a failed request.

State changes only in the event loop. Opening a generation takes seconds, so it runs in a worker thread, under
``_swapping``: without the lock, a slow load could overwrite a newer generation that was activated meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

from searchrl.errors import ConfigurationError, Conflict, ServiceError, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, run_rounds
from services.retriever.generations.generation import Generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes.manifest import DamagedIndex, Manifest
from services.retriever.metrics import RetrieverMetrics

logger = logging.getLogger(__name__)

FOLLOWER, CHECK, LOADER = "index follower", "file check", "index loader"
CheckFiles = Callable[[Manifest], Awaitable[None]]


class ActiveIndex:
    """Holds the generation in service. A new one is loaded beside it and replaces it by one assignment; requests that
    started with the old one finish with it.

    If the one in service turns out to be damaged, the newest older one that is intact replaces it until ``current``
    names another; without an older one the retriever is not ready. ``current`` stays as it is: it may be on a read-only
    disk.
    """

    def __init__(
        self,
        store: IndexStore,
        open_generation: Callable[[Path], Generation],
        metrics: RetrieverMetrics,
        on_change: Callable[[], None] = lambda: None,
        health: Health | None = None,
        check_files: CheckFiles | None = None,
    ) -> None:
        self._store = store
        self._open_generation = open_generation
        self._metrics = metrics
        self._on_change = on_change
        self._health = health
        self._check_files = check_files
        self._checking: asyncio.Task[None] | None = None
        self._generation: Generation | None = None
        # Held while a generation is opened and put in service, and while another replaces a damaged one.
        self._swapping = asyncio.Lock()
        # Named by ``current`` but impossible to open, e.g. because its encoder is missing: the follower would otherwise
        # open it again in every round. Forgotten as soon as any generation is put in service.
        self._unloadable: str | None = None
        # The follower skips these: ``current`` may still name one, which would take the place of the older generation
        # that replaced it. An explicit ``activate`` that succeeds in opening one removes it.
        self._damaged: set[str] = set()
        self._last_error = ""
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
        """Put the generation that ``current`` names into service; if it names none, ``reason`` says so.

        An older one replaces one that is damaged, unless another is in service already.

        Raises:
            ConfigurationError: there is one, but it is unusable; if it is damaged, so are all older ones.
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
                try:
                    self._put_in_service(await asyncio.to_thread(self._open_generation, folder))
                    return
                except DamagedIndex as error:
                    # Without its frames, which hold what was opened: memory of a GPU that the older one needs.
                    damage = error.with_traceback(None)
                if self._generation is not None or not await self._serve_older(name):
                    raise damage
                self._count_failure(LOADER)
                logger.error("the current generation is damaged; an older one is in service: %s", damage)

    async def activate(self, name: str) -> Manifest:
        """Load a generation, make it the current one and put it in service. On failure nothing changes.

        Raises:
            NotFound: there is no such generation.
            Conflict: it is damaged or does not fit this service.
            Unavailable: the folder of the index cannot be written.
        """
        folder = self._store.generation_folder(name)
        async with self._swapping:
            loaded: Generation | None = None
            if self._generation is None or self._generation.id != name:
                try:
                    loaded = await asyncio.to_thread(self._open_generation, folder)
                except ConfigurationError as error:
                    self._metrics.index_failures.inc()
                    raise Conflict(str(error)) from error
            self._damaged.discard(name)
            # Write the pointer before the swap: if the disk is full, the old generation stays both current and in
            # service. In the other order, a restart would return to the old one without notice.
            await asyncio.to_thread(self._store.activate, name)  # may fail: nothing has changed yet
            if loaded is not None:
                self._put_in_service(loaded)
            else:
                self._metrics.index_fallback.set(0)
            return self.get().manifest

    async def follow(self, interval_seconds: float) -> None:
        """Follow ``current``, which the build command or another replica may change; never returns."""
        await run_rounds(self._follow_current, interval_seconds, FailureWatch(FOLLOWER))

    async def _follow_current(self) -> None:
        """One round. A generation that cannot be loaded is reported once and not retried until another was tried."""
        name = None
        try:
            name = self._store.current()
            in_service = self._generation.id if self._generation else None
            if name not in (None, self._unloadable, in_service) and name not in self._damaged:
                await self.load_current()
            elif in_service is not None and name in (in_service, *self._damaged):
                # An operator may make the generation current that replaced a damaged one: it then replaces none.
                self._metrics.index_fallback.set(name != in_service)
            self._last_error = ""
        except asyncio.CancelledError:
            raise
        # Not ``Exception``: a panic of tantivy reaches Python as pyo3's PanicException, which is a BaseException.
        except BaseException as error:
            if not isinstance(error, OSError):  # storage that is unavailable for a moment is retried every round
                self._unloadable = name
            previous, self._last_error = self._last_error, f"{type(error).__name__}: {error}"
            if previous != self._last_error:
                self._count_failure(FOLLOWER)
                message = "the current generation cannot be loaded; the old one stays in service: %s"
                logger.error(message, error, exc_info=not isinstance(error, ConfigurationError))

    async def _check(self, check_files: CheckFiles, generation: Generation) -> None:
        """Check the files of ``generation``; one that differs makes the retriever not ready, as results may be wrong,
        until another generation is in service.
        """
        try:
            await check_files(generation.manifest)
        # A folder that was deleted is a ServiceError (NotFound); its files are as lost as damaged ones.
        except (ConfigurationError, ServiceError, OSError) as error:
            self._count_failure(CHECK)
            logger.error("the index in service is damaged: %s", error)
            # Before waiting for the lock: whoever holds it may be opening an index for seconds, while results may be
            # wrong.
            if self._health is not None and self._generation is generation:
                self._health.set_failing(CHECK, str(error))
            async with self._swapping:
                if self._generation is generation:
                    await self._serve_older(generation.id)

    async def _serve_older(self, damaged: str) -> bool:
        """Put the newest generation in service that is older than ``damaged`` and can be opened; False if none can.

        Called with ``_swapping`` held.
        """
        self._damaged.add(damaged)
        older = [one.generation for one in self._store.list() if one.generation < damaged]  # names sort by time
        for name in sorted(older, reverse=True):
            if name in self._damaged:
                continue
            try:
                opened = await asyncio.to_thread(self._open_generation, self._store.generation_folder(name))
            except (ConfigurationError, ServiceError, OSError) as error:
                logger.error("the older generation %s cannot be used either: %s", name, error)
                continue
            self._put_in_service(opened)
            self._metrics.index_fallback.set(1)
            logger.warning("an older generation replaces the damaged one %s", damaged)
            return True
        return False

    def _count_failure(self, owner: str) -> None:
        self._metrics.index_failures.inc()
        self._metrics.thread_failures.labels(owner=owner).inc()

    def _put_in_service(self, generation: Generation) -> None:
        """Replace the generation in service, start the check of its files and report the change in metrics and health.

        Does not await, so that no request sees a part of the change. Called with ``_swapping`` held.
        """
        old, self._generation = self._generation, generation
        self._unloadable = None
        self.reason = "ok"
        if self._health is not None:
            self._health.set_working(CHECK)
        # The check of the old generation is obsolete; but if it is what calls this, it must not cancel itself.
        if self._checking is not None and self._checking is not asyncio.current_task():
            self._checking.cancel()
        if self._check_files is not None:
            self._checking = asyncio.create_task(self._check(self._check_files, generation))
        if old is not None:
            # The id is a label: without this, the series of the old generation would stay at 1 beside the new one.
            self._metrics.index_info.remove(old.id, old.manifest.kind)
        self._metrics.index_info.labels(generation=generation.id, kind=generation.manifest.kind).set(1)
        self._metrics.index_created.set(datetime.fromisoformat(generation.manifest.created).timestamp())
        self._metrics.index_passages.set(len(generation.passages))
        self._metrics.index_fallback.set(0)
        self._metrics.index_swaps.inc()
        logger.info("index generation in service", extra={"data": {"generation": generation.id}})
        self._on_change()


class IndexHealth(Health):
    """Ready only while an index is in service."""

    def __init__(self) -> None:
        super().__init__()
        self._index: ActiveIndex | None = None

    def watch(self, index: ActiveIndex) -> None:
        """Make readiness depend on this index."""
        self._index = index

    def set_ready(self) -> None:
        # The server calls this at the end of its start, when there may be no index yet. ``ActiveIndex`` calls it again
        # for each generation that it puts in service.
        if self._index is not None and not self._index.is_loaded:
            self.set_not_ready(self._index.reason)
        else:
            super().set_ready()
