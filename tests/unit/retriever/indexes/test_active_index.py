"""Which generation is in service."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError, Conflict, NotFound, Unavailable
from services.retriever.indexes.active_index import ActiveIndex
from services.retriever.indexes.index_store import IndexStore
from services.retriever.indexes.manifest import Manifest
from services.retriever.metrics import RetrieverMetrics

Build = Callable[..., Manifest]


def damage(store: IndexStore, manifest: Manifest) -> None:
    rows = store.generation_folder(manifest.generation) / "passages" / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-3])


async def test_without_an_index_it_says_how_to_build_one(active_index: ActiveIndex) -> None:
    await active_index.load_current()
    assert not active_index.is_loaded
    with pytest.raises(Unavailable, match=r"services\.retriever\.build_index"):
        active_index.get()


async def test_the_current_generation_is_loaded(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build
) -> None:
    manifest = build_bm25(store, corpus)
    await active_index.load_current()
    assert active_index.get().id == manifest.generation


async def test_a_damaged_current_generation_stops_the_start(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build
) -> None:
    damage(store, build_bm25(store, corpus))
    with pytest.raises(ConfigurationError, match="damaged"):
        await active_index.load_current()


async def test_a_pointer_to_nowhere_stops_the_start(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build
) -> None:
    build_bm25(store, corpus)
    (store.folder / "current").write_text("gone\n")
    with pytest.raises(ConfigurationError, match="'gone', but 'current' names it"):
        await active_index.load_current()


async def test_activating_a_damaged_generation_keeps_the_old_one_in_service_and_current(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    old, new = build_bm25(store, corpus), build_bm25(store, corpus, activate=False)
    await active_index.load_current()
    damage(store, new)
    with pytest.raises(Conflict, match="damaged"):
        await active_index.activate(new.generation)
    assert active_index.get().id == store.current() == old.generation
    assert metrics.index_failures._value.get() == 1


async def test_an_older_generation_can_be_put_back(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build
) -> None:
    old, new = build_bm25(store, corpus), build_bm25(store, corpus)
    await active_index.load_current()
    assert active_index.get().id == new.generation
    assert (await active_index.activate(old.generation)).generation == old.generation
    assert active_index.get().id == store.current() == old.generation
    with pytest.raises(NotFound):
        await active_index.activate("unknown")


async def test_it_follows_the_pointer_that_others_move(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = asyncio.Event()
    monkeypatch.setattr(active_index, "_on_change", changed.set)
    following = asyncio.create_task(active_index.follow(0.01))
    for _ in range(2):
        manifest = build_bm25(store, corpus)
        await asyncio.wait_for(changed.wait(), 10)
        changed.clear()
        assert active_index.get().id == manifest.generation
    following.cancel()
    await asyncio.wait([following])


async def test_a_damaged_generation_that_others_activate_is_tried_once(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics
) -> None:
    old = build_bm25(store, corpus)
    await active_index.load_current()
    damage(store, build_bm25(store, corpus))
    following = asyncio.create_task(active_index.follow(0.001))
    while not metrics.index_failures._value.get():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    following.cancel()
    await asyncio.wait([following])
    assert active_index.get().id == old.generation
    assert metrics.index_failures._value.get() == 1
