"""Generations on disk: complete or absent, switched in one step, checked when opened."""

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError, Conflict, NotFound, Unavailable
from searchrl.storage.durable_files import try_lock
from services.retriever.generations.generation_builder import build_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes.manifest import BuildPlan, Manifest, Verification, read_manifest, verify_files
from services.retriever.indexes.vectors.base import VectorPlan

Build = Callable[..., Manifest]


def test_the_manifest_of_a_generation_describes_its_corpus_and_files(
    store: IndexStore, corpus: Path, build_bm25: Build
) -> None:
    manifest = build_bm25(store, corpus)
    assert (manifest.kind, manifest.passages, manifest.language) == ("bm25", 3, "english")
    assert manifest.corpus.files == ("corpus.jsonl",)
    assert "passages/rows.jsonl" in manifest.files
    assert store.current() == manifest.generation
    assert store.list() == [manifest]


def test_two_builds_in_one_second_get_different_ids(store: IndexStore, corpus: Path, build_bm25: Build) -> None:
    first, second = build_bm25(store, corpus), build_bm25(store, corpus)
    assert first.generation != second.generation
    assert len(store.list()) == 2
    assert store.current() == second.generation


def test_an_empty_store_has_no_current_generation(store: IndexStore) -> None:
    assert store.current() is None
    assert store.list() == []


@pytest.mark.parametrize("name", ["nowhere", "..", ".", "", "../../etc", ".building-1", "x" * 5000, "a\0b"])
def test_only_complete_generations_can_be_activated(store: IndexStore, name: str) -> None:
    with pytest.raises(NotFound):
        store.activate(name)


def test_a_failed_build_leaves_nothing_behind(
    store: IndexStore, corpus: Path, tmp_path: Path, build_bm25: Build
) -> None:
    before = build_bm25(store, corpus)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("rubbish\n")
    with pytest.raises(ConfigurationError, match="unusable rows"):
        build_bm25(store, bad)
    assert store.list() == [before]
    assert [path.name for path in (store.folder / "generations").iterdir()] == [before.generation]


def test_a_generation_and_its_activation_survive_a_power_loss(
    store: IndexStore, corpus: Path, build_bm25: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename, replace = os.fsync, Path.rename, Path.replace

    def note_sync(descriptor: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def note_rename(source: Path, target: Path) -> Path:
        events.append(f"rename to {Path(target).name}")
        return rename(source, target)

    def note_replace(source: Path, target: Path) -> Path:
        events.append(f"rename to {Path(target).name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(Path, "replace", note_replace)
    manifest = build_bm25(store, corpus)
    published = events.index(f"rename to {manifest.generation}")
    assert {"sync manifest.json", "sync rows.jsonl", "sync passages", "sync bm25"} <= set(events[:published])
    assert events[published + 1] == "sync generations"
    assert events[-3].startswith("sync .current.")
    assert events[-2:] == ["rename to current", f"sync {store.folder.name}"]


def test_two_builds_at_once_are_refused(store: IndexStore, corpus: Path, build_bm25: Build) -> None:
    with store.start_build(), pytest.raises(Conflict, match="another build"):
        build_bm25(store, corpus)
    build_bm25(store, corpus)


def test_a_build_starts_while_the_interruption_of_the_last_one_is_described(
    store: IndexStore, corpus: Path, build_bm25: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.folder.mkdir()
    with (store.folder / "build.lock").open("wb") as file:
        assert try_lock(file, shared=True)  # as ``interrupted_build`` does
        monkeypatch.setattr(time, "sleep", lambda seconds: file.close())
        build_bm25(store, corpus)


def test_files_of_a_killed_build_are_no_generation_and_are_removed_by_the_next_build(
    store: IndexStore, corpus: Path, build_bm25: Build
) -> None:
    remains = store.folder / "generations" / ".building-999"
    (remains / "passages").mkdir(parents=True)
    (remains / "manifest.json").write_text("{}")
    assert store.list() == []
    build_bm25(store, corpus)
    assert not remains.exists()


def test_a_build_that_is_killed_is_named_until_the_next_one(
    store: IndexStore, corpus: Path, tmp_path: Path, build_bm25: Build
) -> None:
    class Killed(BaseException):
        pass

    assert store.interrupted_build() == ""
    with pytest.raises(Killed), store.start_build("bm25 index of rows.jsonl"):
        assert store.interrupted_build() == ""  # it runs
        raise Killed
    assert store.interrupted_build().startswith("the build of a bm25 index of rows.jsonl, started 20")
    assert store.interrupted_build().endswith("was killed; request it again")
    build_bm25(store, corpus)
    assert store.interrupted_build() == ""
    with pytest.raises(ValueError, match="reported to its caller"), store.start_build("bm25 index of rows.jsonl"):
        raise ValueError("reported to its caller")
    assert store.interrupted_build() == ""
    (store.folder / "build.lock").write_bytes(b"\xff{")
    assert store.interrupted_build() == ""


@pytest.mark.parametrize("verification", ["full", "auto"])
def test_a_changed_byte_is_noticed(
    store: IndexStore, corpus: Path, build_bm25: Build, verification: Verification
) -> None:
    manifest = build_bm25(store, corpus)
    folder = store.generation_folder(manifest.generation)
    rows = folder / "passages" / "rows.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"Oslo", b"Olso"))
    verify_files(folder, manifest, "sizes")
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl is damaged"):
        verify_files(folder, manifest, verification)


def test_a_missing_or_cut_off_file_is_noticed_by_its_size(store: IndexStore, corpus: Path, build_bm25: Build) -> None:
    manifest = build_bm25(store, corpus)
    folder = store.generation_folder(manifest.generation)
    (folder / "passages" / "ids.npy").unlink()
    with pytest.raises(ConfigurationError, match=r"ids\.npy is missing"):
        verify_files(folder, manifest, "sizes")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{not json", "is damaged"), ('{"generation": 5}', "is damaged"), ("", "is damaged")],
)
def test_a_damaged_manifest_is_refused_with_its_path(
    store: IndexStore, corpus: Path, build_bm25: Build, content: str, message: str
) -> None:
    folder = store.generation_folder(build_bm25(store, corpus).generation)
    healthy = build_bm25(store, corpus)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_manifest(folder)
    assert str(folder / "manifest.json") in str(caught.value)
    assert store.list() == [healthy]


def test_a_manifest_of_a_newer_format_is_refused(store: IndexStore, corpus: Path, build_bm25: Build) -> None:
    folder = store.generation_folder(build_bm25(store, corpus).generation)
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**fields, "format_version": 2}))
    with pytest.raises(ConfigurationError, match="format 2, this program reads 1"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"kind": "dense"}, "needs an encoder"),
        ({"kind": "bm25", "vectors": VectorPlan("Flat")}, "has no vectors"),
        ({"kind": "hybrid", "encoder": Path("/nowhere")}, "not a model folder"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    store: IndexStore, corpus: Path, plan: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_generation(store, BuildPlan((corpus,), **plan), lambda phase, done, total: None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError("IoError: No space left on device (28)")]
)
def test_a_full_disk_is_reported_in_one_sentence_and_leaves_no_partial_files(
    store: IndexStore, corpus: Path, build_bm25: Build, failure: Exception
) -> None:
    before = build_bm25(store, corpus)
    with pytest.raises(Unavailable, match=r"no space left for a new index.*free space"), store.start_build():
        raise failure
    assert store.list() == [before]
    assert store.current() == before.generation


def test_other_failures_of_a_build_stay_what_they_are(store: IndexStore) -> None:
    with pytest.raises(PermissionError), store.start_build():
        raise PermissionError(errno.EACCES, "no")
