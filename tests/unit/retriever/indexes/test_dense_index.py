"""Exact and FAISS vector search against brute force."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.errors import ConfigurationError
from services.retriever.indexes import dense_index
from services.retriever.indexes.dense_index import ExactIndex, Rows, Vectors
from services.retriever.indexes.faiss_index import FaissIndex
from services.retriever.indexes.ranked_rows import RankedRows


def vectors(count: int, dimensions: int, seed: int) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def brute_force(corpus_ND: Vectors, query_D: Vectors, top_k: int, allowed: Rows | None = None) -> RankedRows:
    scores_N = corpus_ND.astype(np.float64) @ query_D.astype(np.float64)
    rows = range(len(corpus_ND)) if allowed is None else allowed.tolist()
    best = sorted(rows, key=lambda row: (-scores_N[row], row))[:top_k]
    return RankedRows(best, [float(scores_N[row]) for row in best])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 20), st.integers(0, 1000), st.booleans())
def test_exact_search_is_brute_force(count: int, queries: int, top_k: int, seed: int, is_filtered: bool) -> None:
    corpus_ND, queries_QD = vectors(count, 8, seed), vectors(queries, 8, seed + 1)
    allowed = np.arange(0, count, 3) if is_filtered else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_index, "_BLOCK_ROWS", 37)
        found = ExactIndex(corpus_ND).search(queries_QD, top_k, allowed)
    for query_D, ranked in zip(queries_QD, found, strict=True):
        expected = brute_force(corpus_ND, query_D, top_k, allowed)
        assert ranked.rows == expected.rows
        assert ranked.scores == pytest.approx(expected.scores, abs=1e-5)


def test_equal_scores_are_in_row_order_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_index, "_BLOCK_ROWS", 10)
    corpus_ND = np.ones((95, 4), dtype=np.float32)
    (ranked,) = ExactIndex(corpus_ND).search(np.ones((1, 4), dtype=np.float32), 25, None)
    assert ranked.rows == list(range(25))


def test_a_batch_gives_what_single_queries_give() -> None:
    index, queries_QD = ExactIndex(vectors(2000, 32, 0)), vectors(20, 32, 1)
    batched = index.search(queries_QD, 10, None)
    for query_D, ranked in zip(queries_QD, batched, strict=True):
        (single,) = index.search(query_D[None], 10, None)
        assert single.rows == ranked.rows
        assert single.scores == pytest.approx(ranked.scores, abs=1e-6)


def test_vectors_survive_the_disk(tmp_path: Path) -> None:
    corpus_ND = vectors(50, 16, 3)
    built = ExactIndex.build(tmp_path, [corpus_ND[:20], corpus_ND[20:]])
    assert (len(built), built.dimensions) == (50, 16)
    assert ExactIndex.open(tmp_path, 16).search(corpus_ND[7:8], 1, None)[0].rows == [7]


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    ExactIndex.build(tmp_path, [vectors(5, 16, 0)])
    (tmp_path / "vectors.f32").write_bytes((tmp_path / "vectors.f32").read_bytes()[:-4])
    with pytest.raises(ConfigurationError, match="cut off"):
        ExactIndex.open(tmp_path, 16)
    with pytest.raises(ConfigurationError, match="no readable vectors"):
        ExactIndex.open(tmp_path / "nowhere", 16)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_faiss_finds_what_brute_force_finds(tmp_path: Path, factory: str) -> None:
    corpus_ND, queries_QD = vectors(500, 16, 0), vectors(10, 16, 1)
    index = FaissIndex.build(tmp_path, [corpus_ND[:256], corpus_ND[256:]], factory=factory)
    assert (len(index), index.dimensions) == (500, 16)
    for query_D, ranked in zip(queries_QD, index.search(queries_QD, 3, None), strict=True):
        assert ranked.rows == brute_force(corpus_ND, query_D, 3).rows


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat"])
def test_faiss_keeps_to_the_allowed_rows(tmp_path: Path, factory: str) -> None:
    allowed = np.array([3, 100, 250, 499])
    index = FaissIndex.build(tmp_path, [vectors(500, 16, 0)], factory=factory)
    for ranked in index.search(vectors(5, 16, 1), 10, allowed):
        assert set(ranked.rows) <= set(allowed.tolist())
        assert ranked.rows


def test_minus_one_never_becomes_a_row(tmp_path: Path) -> None:
    # one of four cells is probed, so FAISS cannot find 100 rows and pads with -1
    index = FaissIndex.build(tmp_path, [vectors(100, 8, 0)], factory="IVF4,Flat")
    raw = faiss.read_index(str(tmp_path / "index.faiss")).search(vectors(1, 8, 5), 100)[1]
    assert -1 in raw
    (ranked,) = index.search(vectors(1, 8, 5), 100, None)
    assert 0 < len(ranked.rows) < 100
    assert min(ranked.rows) >= 0
    assert len(ranked.scores) == len(ranked.rows)


def test_a_euclidean_index_scores_near_vectors_higher(tmp_path: Path) -> None:
    corpus_ND = vectors(20, 8, 0)
    index = faiss.IndexFlatL2(8)
    index.add(corpus_ND)
    faiss.write_index(index, str(tmp_path / "l2.index"))
    (ranked,) = FaissIndex.open(tmp_path / "l2.index").search(corpus_ND[4:5], 5, None)
    assert ranked.rows[0] == 4
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


def test_files_and_factories_that_faiss_does_not_know_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.index").write_bytes(b"no index at all")
    with pytest.raises(ConfigurationError, match="no FAISS index"):
        FaissIndex.open(tmp_path / "broken.index")
    with pytest.raises(ConfigurationError, match="knows no index type 'Rubbish'"):
        FaissIndex.build(tmp_path / "x", [vectors(5, 8, 0)], factory="Rubbish")
    with pytest.raises(ConfigurationError, match="cannot be trained on 5 rows"):
        FaissIndex.build(tmp_path / "y", [vectors(5, 8, 0)], factory="IVF64,Flat")
