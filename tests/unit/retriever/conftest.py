"""Fixtures for the tests of the retriever: small real indexes, and rankers that a test can block."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from searchrl.platform.health import Health
from services.retriever.generations.build_jobs import BuildJobs, BuildSettings
from services.retriever.generations.generation import Generation, open_generation
from services.retriever.generations.generation_builder import build_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes.manifest import BuildPlan, Manifest
from services.retriever.metrics import RetrieverMetrics
from services.retriever.pipeline import SearchPipeline
from services.retriever.ranking import RankedRows
from services.retriever.search_service import SearchLimits, SearchService
from services.retriever.serving.active_index import ActiveIndex
from services.retriever.serving.query_batcher import BatchingSettings, QueryBatcher
from services.retriever.serving.redis_cache import CacheSettings

ROWS = (
    '{"id": "a", "contents": "\\"Amber Falcon\\"\\nA film directed by Lena Holt.", "metadata": {"world": "w1"}}',
    '{"id": "b", "contents": "\\"Lena Holt\\"\\nA director born in Oslo.", "metadata": {"world": "w1"}}',
    '{"id": "c", "contents": "\\"Oslo\\"\\nThe capital of Norway.", "metadata": {"world": "w2"}}',
)


class GatedRanker:
    """Ranks only while its gate is open and records the batches; fails for queries that contain the word poison.

    ``rank`` runs in the batcher's owner thread; the events are set and awaited from the test's thread.
    """

    def __init__(self, rows: int = 3) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []
        self._rows = rows

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        self.batches.append(list(queries))
        self.entered.set()
        assert self.gate.wait(30)
        if any("poison" in query for query in queries):
            raise RuntimeError("cannot rank this")
        return [RankedRows([len(query) % self._rows], [float(len(query))]) for query in queries]


@pytest.fixture
def metrics() -> RetrieverMetrics:
    return RetrieverMetrics(CollectorRegistry())


@pytest.fixture
def make_batcher(metrics: RetrieverMetrics) -> Iterator[Callable[..., QueryBatcher]]:
    made: list[QueryBatcher] = []

    def make(health: Health | None = None, probe_seconds: float = 1.0, **settings: float) -> QueryBatcher:
        batching = BatchingSettings.model_validate(settings)
        made.append(QueryBatcher(batching, metrics, health, probe_seconds=probe_seconds))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(ROWS) + "\n")
    return file


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    return IndexStore(tmp_path / "indexes")


def build(store: IndexStore, corpus: Path, activate: bool = True) -> Manifest:
    """Build a BM25 generation of ``corpus``."""
    manifest = build_generation(store, BuildPlan((corpus,), "bm25"), lambda phase, done, total: None)
    if activate:
        store.activate(manifest.generation)
    return manifest


@pytest.fixture
def build_bm25() -> Callable[..., Manifest]:
    return build


@pytest.fixture
def gated_ranker() -> GatedRanker:
    return GatedRanker()


def open_without_encoder(folder: Path) -> Generation:
    def no_encoder(description: object) -> None:
        raise AssertionError("no encoder is needed here")

    return open_generation(folder, no_encoder)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def active_index(store: IndexStore, metrics: RetrieverMetrics) -> ActiveIndex:
    return ActiveIndex(store, open_without_encoder, metrics)


@pytest.fixture
def make_service(
    active_index: ActiveIndex,
    store: IndexStore,
    make_batcher: Callable[..., QueryBatcher],
    metrics: RetrieverMetrics,
) -> Callable[..., SearchService]:
    def make(builds: BuildSettings = BuildSettings(), **limits: int) -> SearchService:
        pipeline = SearchPipeline(CacheSettings(memory_entries=1000), None, make_batcher(), metrics)
        jobs = BuildJobs(store.folder, active_index.activate, builds)
        return SearchService(active_index, store, pipeline, jobs, metrics, SearchLimits(**limits))

    return make
