"""An opened generation searches where the settings say, and names all that its rankings depend on."""

import gc
import json
import threading
import weakref
from pathlib import Path

import pytest

from services.retriever.encoders.base import EncoderSettings
from services.retriever.encoders.open_encoder import reopen_encoder
from services.retriever.generations.generation import Generation, open_generation
from services.retriever.generations.generation_builder import BuildPlan, build_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes.dense import DenseRanker
from services.retriever.indexes.manifest import DamagedIndex
from services.retriever.indexes.vectors.base import ExactSettings, Unservable
from services.retriever.indexes.vectors.gpu_exact import GpuExactIndex
from tests.fakes.tiny_encoder import numbered_passages, write_tiny_encoder

PASSAGES = numbered_passages(300, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(PASSAGES)))
    store = IndexStore(folder / "indexes")
    plan = BuildPlan((corpus,), "dense", encoder=write_tiny_encoder(folder / "encoder"))
    return store.generation_folder(build_generation(store, plan, lambda phase, done, total: None).generation)


def open_with(folder: Path, **exact: object) -> tuple[Generation, DenseRanker]:
    settings = ExactSettings.model_validate(exact)
    generation = open_generation(folder, lambda found: reopen_encoder(found, EncoderSettings()), exact=settings)
    (ranker,) = generation.first_stages["dense"]
    assert isinstance(ranker, DenseRanker)
    return generation, ranker


def test_exact_search_runs_on_the_devices_of_the_settings_and_finds_the_same(folder: Path) -> None:
    on_file, plain = open_with(folder)
    on_devices, copied = open_with(folder, device="cpu,cpu")
    rescored, _ = open_with(folder, device="cpu,cpu", rescore=True)
    assert isinstance(copied._index, GpuExactIndex)
    queries = [" ".join(passage.split()[:5]) for passage in PASSAGES[::30]]
    assert [found.rows[:1] for found in copied.rank(queries, 5, {})] == [
        found.rows[:1] for found in plain.rank(queries, 5, {})
    ]
    # rankings of rounded vectors must not be taken from the cache for others
    assert on_file.model_key == rescored.model_key != on_devices.model_key


def test_a_device_that_cannot_be_used_is_no_damage_of_the_index(folder: Path) -> None:
    with pytest.raises(Unservable, match="cuda:63") as caught:
        open_with(folder, device="cuda:63")
    assert not isinstance(caught.value, DamagedIndex)  # which an older generation would replace


def test_a_generation_that_is_replaced_frees_its_devices(folder: Path) -> None:
    before = threading.active_count()
    generation, ranker = open_with(folder, device="cpu,cpu")
    ranker.rank(["w1 w2"], 3, {})
    assert isinstance(ranker._index, GpuExactIndex)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("gpu-exact")]
    vectors = weakref.ref(ranker._index._shards[0])
    del generation, ranker
    gc.collect()
    assert vectors() is None
    for thread in threads:
        thread.join(timeout=60)
    assert threading.active_count() <= before
