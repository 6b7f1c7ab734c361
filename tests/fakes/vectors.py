"""Provides random vectors, an array as a corpus of vectors, and exact search by brute force."""

from collections.abc import Iterator

import numpy as np

from services.retriever.indexes.vectors.base import Rows, Vectors
from services.retriever.indexes.vectors.passage_vectors import PassageVectors
from services.retriever.ranking import RankedRows


def vectors(count: int, dimensions: int, seed: int) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def brute_force(corpus_ND: Vectors, query_D: Vectors, top_k: int, allowed: Rows | None = None) -> RankedRows:
    scores_N = corpus_ND.astype(np.float64) @ query_D.astype(np.float64)
    rows = range(len(corpus_ND)) if allowed is None else allowed.tolist()
    best = sorted(rows, key=lambda row: (-scores_N[row], row))[:top_k]
    return RankedRows(best, [float(scores_N[row]) for row in best])


class ArraySource(PassageVectors):
    """The vectors of a corpus, yielded in two blocks."""

    def __init__(self, corpus_ND: Vectors) -> None:
        self._corpus_ND = corpus_ND
        self.asked_for: list[Rows] = []

    def __len__(self) -> int:
        return len(self._corpus_ND)

    def blocks(self, rows: Rows | None = None) -> Iterator[Vectors]:
        if rows is not None:
            self.asked_for.append(rows)
        chosen_ND = self._corpus_ND if rows is None else self._corpus_ND[rows]
        yield from np.array_split(chosen_ND, 2)
