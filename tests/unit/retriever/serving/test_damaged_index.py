"""A damaged generation is taken out of service, and the newest intact older one replaces it."""

import asyncio
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from services.retriever.generations.generation import Generation, open_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes.manifest import DamagedIndex, Manifest, check_slowly
from services.retriever.metrics import RetrieverMetrics
from services.retriever.serving.active_index import CHECK, ActiveIndex

Build = Callable[..., Manifest]


def flip_a_byte(store: IndexStore, manifest: Manifest) -> None:
    rows = store.generation_folder(manifest.generation) / "passages" / "rows.jsonl"
    content = bytearray(rows.read_bytes())
    content[10] ^= 1
    rows.write_bytes(content)


def cut_off(store: IndexStore, manifest: Manifest) -> None:
    rows = store.generation_folder(manifest.generation) / "passages" / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-3])


class Watched:
    """An index like a large one: its contents are checked while it serves, once the test permits it."""

    def __init__(self, store: IndexStore, metrics: RetrieverMetrics) -> None:
        self.store = store
        self.health = Health()
        self.health.set_ready()
        self.readiness: list[bool] = []
        self.health.subscribe(self.readiness.append)
        self.may_check = asyncio.Event()
        self.checked: list[str] = []
        self.index = ActiveIndex(store, self._open, metrics, health=self.health, check_files=self._check)

    def _open(self, folder: Path) -> Generation:
        return open_generation(folder, lambda description: None, "sizes")  # pyright: ignore[reportArgumentType]

    async def _check(self, manifest: Manifest) -> None:
        await self.may_check.wait()
        try:
            await check_slowly(self.store.generation_folder(manifest.generation), manifest, 1e12)
        finally:
            self.checked.append(manifest.generation)

    async def until_checked(self, *manifests: Manifest) -> None:
        """Let the checks run until exactly these generations were checked, in this order."""
        self.may_check.set()
        async with asyncio.timeout(10):
            while self.checked != [manifest.generation for manifest in manifests]:
                await asyncio.sleep(0.001)
            while not self.index._checking or not self.index._checking.done():
                await asyncio.sleep(0.001)


async def test_the_generation_before_a_damaged_one_takes_its_place(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = build_bm25(store, corpus), build_bm25(store, corpus)
    watched = Watched(store, metrics)
    await watched.index.load_current()
    flip_a_byte(store, newer)
    await watched.until_checked(newer, older)
    assert watched.index.get().id == older.generation
    # Not ready from the discovery until the older one serves; nothing else changed the readiness.
    assert watched.readiness[0] and watched.readiness[-1] and False in watched.readiness
    assert metrics.index_fallback._value.get() == 1
    assert metrics.index_info.labels(generation=older.generation, kind="bm25")._value.get() == 1
    assert metrics.thread_failures.labels(owner=CHECK)._value.get() == 1
    assert "rows.jsonl is damaged" in caplog.text and "an older generation replaces" in caplog.text
    assert store.current() == newer.generation  # unchanged: other replicas may hold an intact copy


async def test_a_generation_whose_folder_is_deleted_while_it_serves_is_replaced(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    older, newer = build_bm25(store, corpus), build_bm25(store, corpus)
    watched = Watched(store, metrics)
    await watched.index.load_current()
    shutil.rmtree(store.generation_folder(newer.generation))
    await watched.until_checked(newer, older)
    assert watched.index.get().id == older.generation and watched.health.ready
    assert metrics.thread_failures.labels(owner=CHECK)._value.get() == 1


async def test_a_damaged_generation_is_not_loaded_again_but_its_successor_is(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    older, newer = build_bm25(store, corpus), build_bm25(store, corpus)
    watched = Watched(store, metrics)
    await watched.index.load_current()
    flip_a_byte(store, newer)
    await watched.until_checked(newer, older)
    for _ in range(3):
        await watched.index._follow_current()
        assert watched.index.get().id == older.generation
    third = build_bm25(store, corpus)
    await watched.index._follow_current()
    assert watched.index.get().id == third.generation
    assert metrics.index_fallback._value.get() == 0


@pytest.mark.parametrize("how", ["activated here", "activated elsewhere"])
async def test_a_replacement_that_is_made_current_replaces_nothing(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics, how: str
) -> None:
    older, newer = build_bm25(store, corpus), build_bm25(store, corpus)
    cut_off(store, newer)
    await active_index.load_current()
    if how == "activated here":
        await active_index.activate(older.generation)
    else:
        store.activate(older.generation)
        await active_index._follow_current()
    assert metrics.index_fallback._value.get() == 0
    store.activate(newer.generation)
    await active_index._follow_current()
    assert active_index.get().id == older.generation
    assert metrics.index_fallback._value.get() == 1


async def test_damaged_older_generations_are_skipped(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    first, cut, flipped, newest = (build_bm25(store, corpus) for _ in range(4))
    watched = Watched(store, metrics)
    await watched.index.load_current()
    cut_off(store, cut)  # seen when it is opened
    for manifest in (flipped, newest):  # seen by the check only
        flip_a_byte(store, manifest)
    await watched.until_checked(newest, flipped, first)
    assert watched.index.get().id == first.generation and watched.health.ready


async def test_without_an_older_one_the_retriever_is_not_ready_until_another_serves(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    only = build_bm25(store, corpus)
    watched = Watched(store, metrics)
    await watched.index.load_current()
    flip_a_byte(store, only)
    await watched.until_checked(only)
    assert not watched.health.ready and "rows.jsonl is damaged" in watched.health.reason
    newer = build_bm25(store, corpus)
    await watched.index.load_current()
    await watched.until_checked(only, newer)
    assert watched.health.ready and metrics.index_fallback._value.get() == 0


async def test_an_older_generation_restored_manually_is_not_replaced_by_a_newer_one(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    older, _ = build_bm25(store, corpus), build_bm25(store, corpus)
    store.activate(older.generation)
    watched = Watched(store, metrics)
    await watched.index.load_current()
    flip_a_byte(store, older)
    await watched.until_checked(older)
    assert not watched.health.ready


async def test_a_current_generation_that_is_damaged_at_the_start_is_replaced_too(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    older, newer = build_bm25(store, corpus), build_bm25(store, corpus)
    cut_off(store, newer)
    await active_index.load_current()
    assert active_index.get().id == older.generation and active_index.is_loaded
    assert (metrics.index_fallback._value.get(), metrics.index_failures._value.get()) == (1, 1)
    await active_index._follow_current()
    assert active_index.get().id == older.generation


@pytest.mark.parametrize("file", ["manifest.json", "bm25/bm25.json", "passages/offsets.npy"])
async def test_whichever_file_is_missing_the_generation_before_serves(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, file: str
) -> None:
    older, newer = build_bm25(store, corpus), build_bm25(store, corpus)
    path = store.generation_folder(newer.generation) / file
    path.write_bytes(b"{}"[: path.stat().st_size])
    await active_index.load_current()
    assert active_index.get().id == older.generation


async def test_what_was_opened_of_a_damaged_generation_is_freed_before_an_older_one_is_opened(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    older, newer = build_bm25(store, corpus), build_bm25(store, corpus)
    opened: list[weakref.ref[Health]] = []

    def open_folder(folder: Path) -> Generation:
        if folder.name == newer.generation:
            memory = Health()  # stands for vectors on a GPU
            opened.append(weakref.ref(memory))
            raise DamagedIndex("the vector index holds 2 rows, expected 3")
        assert opened[0]() is None
        return open_generation(folder, lambda description: None)  # pyright: ignore[reportArgumentType]

    index = ActiveIndex(store, open_folder, metrics)
    await index.load_current()
    assert index.get().id == older.generation


async def test_a_generation_that_fails_for_another_reason_than_damage_is_not_replaced(
    store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    def open_without_encoder(folder: Path) -> Generation:
        raise ConfigurationError("the encoder's folder is missing")

    for _ in range(2):
        build_bm25(store, corpus)
    index = ActiveIndex(store, open_without_encoder, metrics)
    with pytest.raises(ConfigurationError, match="encoder"):
        await index.load_current()
    assert not index.is_loaded
