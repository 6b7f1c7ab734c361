"""FAISS indexes of many types against brute force, with and without filters."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import faiss
import numpy as np
import pytest

from searchrl.errors import ConfigurationError
from services.retriever.indexes.vectors.base import SearchEffort
from services.retriever.indexes.vectors.faiss_builder import build_faiss
from services.retriever.indexes.vectors.faiss_index import FaissIndex
from tests.fakes.vectors import ArraySource, brute_force, vectors

# Types that store exact vectors: with every list scanned, they find what brute force finds.
LOSSLESS = [
    "Flat", "HNSW16", "IVF4,Flat", "IVF4_HNSW8,Flat", "IVF4,FlatDedup", "Flat,RFlat", "L2norm,Flat", "RR16,Flat",
    "L2norm,HNSW16", "HNSW16,Flat,RFlat", "RR16,IVF4,Flat", "Pad20,Flat",
]  # fmt: skip
# Types that compress vectors: their results are approximate, but filters hold exactly.
LOSSY = [
    "SQ8", "SQ4", "SQfp16", "PQ8x4", "PQ8x4fs", "HNSW16,SQ8", "HNSW16,PQ8x4", "IVF4,SQ8", "IVF4,PQ8x4",
    "IVF4,PQ8x4fs", "PCA12,Flat", "PCA12,IVF4,Flat", "PCAW12,HNSW16", "OPQ8,PQ8x4", "OPQ8,IVF4,PQ8x4", "PQ8x4,RFlat",
    "IVF4,PQ8x4,RFlat", "IVF4,PQ8x4fs,RFlat", "PQ8x4fs,Refine(SQ8)", "OPQ8,IVF4,PQ8x4,RFlat", "RQ4x4", "RQ4x4fs",
    "PRQ2x2x4", "IVF4,RQ4x4", "RaBitQ", "IVF4,RaBitQ", "PCAR12,SQ8",
]  # fmt: skip
EXHAUSTIVE = SearchEffort(nprobe=4, ef_search=600)  # all four lists, and a walk over all 600 rows
# 600 rows of 16 dimensions: enough rows to train every type above, and few enough to do it quickly.
CORPUS_ND, QUERIES_QD = vectors(600, 16, 0), vectors(6, 16, 1)


@cache
def build(factory: str) -> FaissIndex:
    """Build each type once, because training takes most of the time."""
    with TemporaryDirectory() as folder:
        return build_faiss(Path(folder), ArraySource(CORPUS_ND), factory=factory, effort=EXHAUSTIVE).index


@pytest.mark.parametrize("factory", LOSSLESS)
@pytest.mark.parametrize("step", [None, 1, 3, 97])
def test_a_lossless_type_finds_what_brute_force_finds_under_any_filter(factory: str, step: int | None) -> None:
    allowed = None if step is None else np.arange(0, 600, step)
    index = build(factory)
    assert (len(index), index.dimensions) == (600, 16)
    for query_D, ranked in zip(QUERIES_QD, index.search(QUERIES_QD, 5, allowed), strict=True):
        expected = brute_force(CORPUS_ND, query_D, 5, allowed)
        assert ranked.rows == expected.rows
        assert ranked.scores == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("factory", LOSSY)
@pytest.mark.parametrize("step", [None, 3, 97])
def test_a_lossy_type_finds_near_rows_and_keeps_the_filter(factory: str, step: int | None) -> None:
    allowed = np.arange(0, 600, step or 1)
    index = build(factory)
    own_rows = allowed[:6]
    found = index.search(CORPUS_ND[own_rows], 20, None if step is None else allowed)
    for ranked in found:
        assert set(ranked.rows) <= set(allowed.tolist())
        assert len(ranked.rows) == min(20, len(allowed))
        assert ranked.scores == sorted(ranked.scores, reverse=True)
    finds_itself = sum(row in ranked.rows[:5] for row, ranked in zip(own_rows.tolist(), found, strict=True))
    assert finds_itself >= 4  # of 6; chance would find less than one


@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,Flat", "PQ8x4fs", "Flat"])
def test_a_filter_with_many_rows_finds_as_many_as_asked_for(
    tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.retriever.indexes.vectors.faiss_index._FEW_ROWS", 10)
    # all allowed rows lie on the far side of the query: a list or a walk near it meets none of them
    query_1D = CORPUS_ND[:1]
    allowed = np.sort(np.argsort(CORPUS_ND @ query_1D[0])[:40])
    index = build_faiss(
        tmp_path, ArraySource(CORPUS_ND), factory=factory, effort=SearchEffort(nprobe=1, ef_search=8)
    ).index
    (ranked,) = index.search(query_1D, 20, allowed)
    assert len(ranked.rows) == 20
    assert set(ranked.rows) <= set(allowed.tolist())


def test_a_filter_that_allows_fewer_rows_than_asked_for_gives_these() -> None:
    for factory in (*LOSSLESS, *LOSSY):
        (ranked,) = build(factory).search(QUERIES_QD[:1], 10, np.array([3, 500]))
        assert sorted(ranked.rows) == [3, 500], factory


def test_minus_one_never_becomes_a_row(tmp_path: Path) -> None:
    # one of four cells is probed, so FAISS cannot find 100 rows and pads with -1
    corpus_ND = vectors(100, 8, 0)
    index = build_faiss(tmp_path, ArraySource(corpus_ND), factory="IVF4,Flat", effort=SearchEffort(nprobe=1)).index
    raw = faiss.read_index(str(tmp_path / "index.faiss")).search(vectors(1, 8, 5), 100)[1]
    assert -1 in raw
    (ranked,) = index.search(vectors(1, 8, 5), 100, None)
    assert 0 < len(ranked.rows) < 100
    assert min(ranked.rows) >= 0
    assert len(ranked.scores) == len(ranked.rows)


def test_a_euclidean_index_scores_near_vectors_higher_also_under_a_filter(tmp_path: Path) -> None:
    corpus_ND = vectors(20, 8, 0)
    for number, index in enumerate((faiss.IndexFlatL2(8), faiss.IndexHNSWFlat(8, 8))):
        index.add(corpus_ND)
        faiss.write_index(index, str(tmp_path / f"{number}.index"))
        for allowed in (None, np.array([1, 4, 7, 9, 15])):
            (ranked,) = FaissIndex.open(tmp_path / f"{number}.index").search(corpus_ND[4:5], 5, allowed)
            assert ranked.rows[0] == 4
            assert ranked.scores[0] == pytest.approx(0, abs=1e-5)
            assert ranked.scores == sorted(ranked.scores, reverse=True)


def test_a_flat_file_of_another_builder_is_mapped_not_copied(tmp_path: Path) -> None:
    index = faiss.index_factory(64, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(vectors(1000, 64, 0))
    file = tmp_path / "e5_Flat.index"
    faiss.write_index(index, str(file))
    opened = FaissIndex.open(file)
    assert str(file) in Path("/proc/self/maps").read_text()
    assert opened.search(vectors(1, 64, 0), 1, None)[0].rows == [0]


def test_all_queries_share_one_scan() -> None:
    FaissIndex(faiss.IndexFlatIP(8))
    assert faiss.cvar.distance_compute_blas_threshold == 1


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.index").write_bytes(b"no index at all")
    with pytest.raises(ConfigurationError, match="not a FAISS index"):
        FaissIndex.open(tmp_path / "broken.index")


def test_the_effort_reaches_the_index_through_every_wrapper() -> None:
    for factory in ("IVF4,Flat", "OPQ8,IVF4,PQ8x4", "IVF4,PQ8x4,RFlat", "RR16,IVF4,Flat"):
        for nprobe, expected in ((2, 2), (100, 4), (None, 4)):  # four lists are all that there are
            index = FaissIndex(_raw(factory), SearchEffort(nprobe=nprobe))
            assert faiss.extract_index_ivf(index.raw).nprobe == expected
    graph = cast(Any, FaissIndex(_raw("HNSW16"), SearchEffort(ef_search=77)).raw)
    assert graph.hnsw.efSearch == 77


def test_an_ivf_index_scans_the_root_of_its_lists_and_16_at_least() -> None:
    assert [SearchEffort().nprobe_of(lists) for lists in (4, 64, 1024, 4096)] == [4, 16, 32, 64]
    assert SearchEffort(nprobe=3).or_else(SearchEffort(nprobe=5, ef_search=6)) == SearchEffort(nprobe=3, ef_search=6)


def _raw(factory: str) -> faiss.Index:
    """Return an index of its own, since wrapping one changes it."""
    return faiss.clone_index(_trained(factory))


@cache
def _trained(factory: str) -> faiss.Index:
    index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(CORPUS_ND)
    index.add(CORPUS_ND)
    return index
