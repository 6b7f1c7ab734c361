"""Exact search from a GPU's memory finds the rows of a brute force, with ties in row order."""

from typing import Literal

import numpy as np
import pytest

from services.retriever.indexes.vectors.base import ExactSettings
from services.retriever.indexes.vectors.gpu_exact import GpuExactIndex
from tests.fakes.brute_force import random_integers, rank_all

pytestmark = pytest.mark.gpu
Half = Literal["float16", "bfloat16"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_scores_and_ties_are_those_of_a_brute_force(device: str, dtype: Half) -> None:
    rng = np.random.default_rng(1)
    for rows, dimensions, queries, top_k in ((1, 1, 1, 3), (300, 20, 3, 7), (2000, 64, 17, 5), (5000, 100, 70, 300)):
        vectors_ND, queries_QD = random_integers(rng, rows, dimensions), random_integers(rng, queries, dimensions)
        index = GpuExactIndex(vectors_ND, ExactSettings(device=device, dtype=dtype))
        for allowed in (None, np.flatnonzero(rng.random(rows) < 0.3)):
            assert index.search(queries_QD, top_k, allowed) == rank_all(vectors_ND, queries_QD, top_k, allowed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_real_vectors_are_found_exactly_with_rescoring_and_by_rounded_vectors_without(device: str, dtype: Half) -> None:
    rng = np.random.default_rng(2)
    vectors_ND = rng.normal(size=(30_000, 96)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    vectors_ND[20_001] = np.nan
    queries_QD = vectors_ND[:50] * 3e5 + rng.normal(size=(50, 96)).astype(np.float32)
    whole_ND = np.delete(vectors_ND, 20_001, axis=0)
    expected = rank_all(whole_ND, queries_QD, 10, None)
    found = GpuExactIndex(vectors_ND, ExactSettings(device=device, dtype=dtype, rescore=True)).search(
        queries_QD, 10, None
    )
    near = GpuExactIndex(vectors_ND, ExactSettings(device=device, dtype=dtype)).search(queries_QD, 10, None)
    for wanted, exact, rounded in zip(expected, found, near, strict=True):
        assert np.allclose(exact.scores, wanted.scores, rtol=1e-5)
        assert np.allclose(rounded.scores, wanted.scores, rtol=0.01)
        assert exact.rows == [row + (row >= 20_001) for row in wanted.rows]
