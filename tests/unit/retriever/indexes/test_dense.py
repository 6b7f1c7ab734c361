"""Exact and FAISS vector search against brute force."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.errors import ConfigurationError, ServiceError
from services.retriever.corpora.corpus_reader import SourceRow
from services.retriever.corpora.corpus_row import parse_row
from services.retriever.corpora.passage_store import PassageStore, PassageStoreWriter
from services.retriever.indexes.dense import DenseRanker
from services.retriever.indexes.vectors import exact
from services.retriever.indexes.vectors.base import Vectors
from services.retriever.indexes.vectors.exact import ExactIndex
from services.retriever.indexes.vectors.passage_vectors import PassageVectors
from tests.fakes.vectors import brute_force, vectors


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 20), st.integers(0, 1000), st.booleans())
def test_exact_search_is_brute_force(count: int, queries: int, top_k: int, seed: int, is_filtered: bool) -> None:
    corpus_ND, queries_QD = vectors(count, 8, seed), vectors(queries, 8, seed + 1)
    allowed = np.arange(0, count, 3) if is_filtered else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_BLOCK_ROWS", 37)
        found = ExactIndex(corpus_ND).search(queries_QD, top_k, allowed)
    for query_D, ranked in zip(queries_QD, found, strict=True):
        expected = brute_force(corpus_ND, query_D, top_k, allowed)
        assert ranked.rows == expected.rows
        assert ranked.scores == pytest.approx(expected.scores, abs=1e-5)


def test_equal_scores_are_in_row_order_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_BLOCK_ROWS", 10)
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
    with pytest.raises(ConfigurationError, match="truncated"):
        ExactIndex.open(tmp_path, 16)
    with pytest.raises(ConfigurationError, match="no readable vectors"):
        ExactIndex.open(tmp_path / "nowhere", 16)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_no_number_hides_no_other(bad: float) -> None:
    corpus_ND = vectors(200, 8, 0)
    corpus_ND[[0, 50, 199]] = bad
    queries_QD = np.abs(vectors(5, 8, 1))
    finite = np.setdiff1d(np.arange(200), [0, 50, 199])
    for top_k in (1, 3, 200):
        for query_D, ranked in zip(queries_QD, ExactIndex(corpus_ND).search(queries_QD, top_k, None), strict=True):
            assert ranked.rows == brute_force(corpus_ND, query_D, top_k, finite).rows


def test_a_query_vector_that_is_no_number_is_a_failure_and_not_an_empty_result() -> None:
    class Broken:
        def encode_queries(self, texts: Sequence[str]) -> Vectors:
            return np.full((len(texts), 8), np.nan, dtype=np.float32)

    class Unfiltered:
        def rows_with(self, filters: Mapping[str, str]) -> None:
            return None

    broken: Any = Broken()
    unfiltered: Any = Unfiltered()
    with pytest.raises(ServiceError, match="undefined numbers"):
        DenseRanker(broken, ExactIndex(vectors(5, 8, 0)), unfiltered).rank(["a query"], 3, {})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_passage_whose_vector_is_no_number_stops_the_build_and_is_named(tmp_path: Path, bad: float) -> None:
    class Encoder:
        def encode_passages(self, texts: Sequence[str]) -> Vectors:
            return np.array([[1.0, bad if text == "overflow" else 0.0] for text in texts], dtype=np.float32)

    with PassageStoreWriter(tmp_path / "passages") as writer:
        for id, text in (("a", "fine"), ("b", "overflow"), ("c", "fine")):
            line = orjson.dumps({"id": id, "contents": text})
            writer.add(SourceRow(parse_row(line), line))
    encoder: Any = Encoder()
    source = PassageVectors(PassageStore(tmp_path / "passages"), encoder, lambda phase, done, total: None)
    with pytest.raises(ConfigurationError, match="gives passage 'b' a vector with infinite or undefined numbers"):
        list(source.blocks())
