"""The generation in service: loading, activation, following the pointer, and damage."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError, Conflict, NotFound, Unavailable
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes.manifest import Manifest
from services.retriever.metrics import RetrieverMetrics
from services.retriever.serving.active_index import ActiveIndex

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


async def test_a_current_pointer_to_a_missing_generation_stops_the_start(
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


async def test_the_retriever_follows_activations_by_other_processes(
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
    await asyncio.sleep(0.02)  # about twenty rounds of the follower
    following.cancel()
    await asyncio.wait([following])
    assert active_index.get().id == old.generation
    assert metrics.index_failures._value.get() == 1


@pytest.mark.parametrize("name", [b"\xff\xfe\x00", b"", b"no such generation\n"])
async def test_the_follower_continues_whatever_the_pointer_contains(
    active_index: ActiveIndex,
    store: IndexStore,
    corpus: Path,
    build_bm25: Build,
    metrics: RetrieverMetrics,
    name: bytes,
) -> None:
    old = build_bm25(store, corpus)
    await active_index.load_current()
    following = asyncio.create_task(active_index.follow(0.001))
    (store.folder / "current").write_bytes(name)
    await asyncio.sleep(0.02)  # about twenty rounds of the follower
    assert active_index.get().id == old.generation and not following.done()
    new = build_bm25(store, corpus)
    async with asyncio.timeout(10):
        while active_index.get().id != new.generation:
            await asyncio.sleep(0.001)
    assert metrics.index_failures._value.get() == (1 if name else 0)
    following.cancel()
    await asyncio.wait([following])


async def test_an_index_whose_opening_panics_is_reported_once(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, metrics: RetrieverMetrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Panic(BaseException):
        pass

    def panics(folder: Path) -> None:
        raise Panic

    build_bm25(store, corpus)
    await active_index.load_current()
    monkeypatch.setattr(active_index, "_open_generation", panics)
    build_bm25(store, corpus)
    following = asyncio.create_task(active_index.follow(0.001))
    async with asyncio.timeout(10):
        while not metrics.index_failures._value.get():
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)  # about twenty rounds of the follower
    assert metrics.index_failures._value.get() == 1 and not following.done()
    following.cancel()
    await asyncio.wait([following])


async def test_if_the_pointer_cannot_be_written_the_old_generation_stays_in_service(
    active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = build_bm25(store, corpus), build_bm25(store, corpus, activate=False)
    await active_index.load_current()

    def read_only(self: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", read_only)
    with pytest.raises(Unavailable, match="Read-only file system"):
        await active_index.activate(new.generation)
    assert active_index.get().id == store.current() == old.generation
