"""Ranks all vectors for every query in float64, as the reference of indexes."""

import numpy as np
from numpy.typing import NDArray

from services.retriever.ranking import RankedRows


def rank_all(
    vectors_ND: NDArray[np.float32], queries_QD: NDArray[np.float32], top_k: int, allowed: NDArray[np.int64] | None
) -> list[RankedRows]:
    """The best ``top_k`` rows of each query among ``allowed`` by inner product; equal scores in row order."""
    rows = np.arange(len(vectors_ND)) if allowed is None else allowed
    scores_QN = queries_QD.astype(np.float64) @ vectors_ND[rows].astype(np.float64).T
    best = []
    for scores in scores_QN:
        order = np.lexsort((rows, -scores))[:top_k]
        best.append(RankedRows(rows[order].tolist(), scores[order].tolist()))
    return best


def random_integers(rng: np.random.Generator, rows: int, dimensions: int) -> NDArray[np.float32]:
    """Vectors of whole numbers from -3 to 3: sums are exact in every dtype, and equal scores are frequent."""
    return rng.integers(-3, 4, (rows, dimensions)).astype(np.float32)
