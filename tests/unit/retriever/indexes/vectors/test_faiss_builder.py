"""Building FAISS indexes: training, refusals and the measured recall."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from searchrl.errors import ConfigurationError
from services.retriever.indexes.vectors.base import Rows, SearchEffort, Vectors
from services.retriever.indexes.vectors.faiss_builder import build_faiss
from tests.fakes.vectors import ArraySource, vectors

CORPUS_ND = vectors(600, 16, 0)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("Rubbish", "knows no index type"),
        ("", "knows no index type"),
        ("LSH", "knows no index type 'LSH' with inner products"),
        ("PQ5", "knows no index type"),  # 16 dimensions do not divide by 5
        ("IVF700,Flat", "cannot be trained on 600 rows"),
        ("IDMap,Flat", "cannot be filled"),
        ("IDMap2,HNSW16", "cannot be filled"),
        ("NSG16", "cannot be filled"),
        ("HNSW0", "without links"),
        ("HNSW1,SQ8", "without links"),
        ("IVF0,Flat", "without links or lists"),
        ("IVF4,RQ4x4fs", "cannot be served"),
        ("SQ8_direct", "finds only"),
    ],
)
def test_a_type_that_cannot_be_served_is_refused_when_it_is_built(tmp_path: Path, factory: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        build_faiss(tmp_path, ArraySource(CORPUS_ND), factory=factory, recall_queries_QD=CORPUS_ND[:20])


def test_training_uses_a_random_sample_of_the_corpus_and_the_same_each_time(tmp_path: Path) -> None:
    samples = []
    for name in ("a", "b"):
        source = ArraySource(CORPUS_ND)
        build_faiss(tmp_path / name, source, factory="IVF2,Flat", training_rows=100)
        (rows,) = source.asked_for
        samples.append(rows.tolist())
    assert samples[0] == samples[1] == sorted(set(samples[0]))
    assert len(samples[0]) == 100
    assert max(np.diff(samples[0])) < 60  # from all over the corpus


def test_many_lists_are_trained_on_more_rows(tmp_path: Path) -> None:
    source = ArraySource(CORPUS_ND)
    build_faiss(tmp_path, source, factory="IVF12,Flat", training_rows=100)
    (rows,) = source.asked_for
    assert len(rows) == 12 * 40


def test_a_small_corpus_trains_on_all_of_its_rows(tmp_path: Path) -> None:
    source = ArraySource(CORPUS_ND)
    build_faiss(tmp_path, source, factory="IVF4,Flat")
    assert source.asked_for == []


def test_recall_against_exact_search_is_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queries_QD = vectors(50, 16, 7)

    def recall(factory: str, effort: SearchEffort) -> float:
        built = build_faiss(
            tmp_path / f"{factory}{effort.nprobe}", ArraySource(CORPUS_ND), factory=factory, effort=effort,
            recall_queries_QD=queries_QD,
        )  # fmt: skip
        assert built.recall is not None and (built.recall.at, built.recall.queries) == (10, 50)
        return built.recall.recall

    assert recall("Flat", SearchEffort()) == 1.0
    assert recall("IVF16,Flat", SearchEffort(nprobe=16)) == 1.0
    assert not caplog.records
    assert recall("IVF16,Flat", SearchEffort(nprobe=1)) < 0.7
    assert "raise --nprobe" in caplog.text


def test_passages_that_are_equal_stand_for_each_other_in_the_measured_recall(tmp_path: Path) -> None:
    corpus_ND = np.repeat(vectors(10, 16, 0), 60, axis=0)
    built = build_faiss(tmp_path, ArraySource(corpus_ND), factory="IVF4,Flat", recall_queries_QD=vectors(5, 16, 1))
    assert built.recall is not None and built.recall.recall == 1.0


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    class Empty(ArraySource):
        def blocks(self, rows: Rows | None = None) -> Iterator[Vectors]:
            return iter(())

    with pytest.raises(ConfigurationError, match="no vector"):
        build_faiss(tmp_path, Empty(CORPUS_ND), factory="Flat")
