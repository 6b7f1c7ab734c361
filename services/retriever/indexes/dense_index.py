"""Finds nearest vectors exactly: inner products, block by block, for an entire batch of queries at once."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from searchrl.errors import ConfigurationError, ServiceError
from services.retriever.indexes.ranked_rows import RankedRows

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

VECTORS_FILE = "vectors.f32"
# 50 MB of vectors of 768 dimensions, and 34 MB of scores for 512 queries; more would need more memory, fewer would call
# the matrix product more often.
_BLOCK_ROWS = 16_384


class VectorIndex(Protocol):
    """Ranks rows for query vectors: the exact index, or FAISS."""

    @property
    def dimensions(self) -> int: ...

    def __len__(self) -> int: ...

    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[RankedRows]:
        """Up to ``top_k`` rows per query, best first, of those in ``allowed`` (ascending; None: all)."""
        ...


class QueryEncoder(Protocol):
    """Turns query texts into vectors."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors: ...


class RowFilter(Protocol):
    """Knows which rows satisfy metadata filters."""

    def rows_with(self, filters: Mapping[str, str]) -> Rows | None: ...


class DenseRanker:
    """Ranks rows for texts: encodes them and searches a vector index."""

    def __init__(self, encoder: QueryEncoder, index: VectorIndex, row_filter: RowFilter) -> None:
        self._encoder = encoder
        self._index = index
        self._row_filter = row_filter

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        allowed = self._row_filter.rows_with(filters)
        if allowed is not None and not len(allowed):
            return [RankedRows([], []) for _ in queries]
        queries_QD = self._encoder.encode_queries(queries)
        if not np.isfinite(queries_QD).all():
            raise ServiceError("the encoder gave a vector with infinite or undefined numbers for a query")
        return self._index.search(queries_QD, top_k, allowed)


class ExactIndex:
    """Exact inner product search over float32 vectors in a mapped file.

    The file is read once per batch, not once per query. The cost of the products still grows with the number of
    queries; docs/performance.md has the measured rates.
    """

    def __init__(self, vectors_ND: Vectors) -> None:
        self._vectors_ND = vectors_ND

    @classmethod
    def build(cls, folder: Path, blocks: Iterable[Vectors]) -> "ExactIndex":
        """Write vectors, given in blocks of rows, into ``folder`` and open it."""
        folder.mkdir(parents=True, exist_ok=True)
        dimensions = 0
        with (folder / VECTORS_FILE).open("wb") as file:
            for block_BD in blocks:
                dimensions = block_BD.shape[1]
                file.write(np.ascontiguousarray(block_BD, dtype="<f4").tobytes())
        return cls.open(folder, dimensions)

    @classmethod
    def open(cls, folder: Path, dimensions: int) -> "ExactIndex":
        """Map the vectors.

        Raises:
            ConfigurationError: the file is missing, or its size is not a multiple of a vector's.
        """
        path = folder / VECTORS_FILE
        try:
            flat = np.memmap(path, dtype="<f4", mode="r")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} holds no readable vectors ({error}); rebuild the index") from error
        if dimensions < 1 or flat.size % dimensions:
            raise ConfigurationError(f"{path} is truncated: {flat.size} numbers are not a multiple of {dimensions}")
        return cls(flat.reshape(-1, dimensions))

    @property
    def dimensions(self) -> int:
        return self._vectors_ND.shape[1]

    def __len__(self) -> int:
        return self._vectors_ND.shape[0]

    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[RankedRows]:
        """Up to ``top_k`` rows per query by inner product; equal scores in row order."""
        count = len(self) if allowed is None else len(allowed)
        best = [RankedRows([], []) for _ in range(len(queries_QD))]
        for start in range(0, count, _BLOCK_ROWS):
            end = min(start + _BLOCK_ROWS, count)
            rows = np.arange(start, end) if allowed is None else allowed[start:end]
            block_BD = self._vectors_ND[start:end] if allowed is None else self._vectors_ND[rows]
            merge_best(best, queries_QD @ block_BD.T, rows, top_k)
        return best


def merge_best(best: list[RankedRows], scores_QB: Vectors, rows: Rows, top_k: int) -> None:
    """Merge a block's rows, all later than those seen so far, into each query's best rows.

    A score that is infinite or NaN is never ranked: compared as it is, a NaN would hide the rest of its block.
    """
    highest_Q = scores_QB.max(axis=1)
    if not np.isfinite(highest_Q).all():
        scores_QB = np.where(np.isfinite(scores_QB), scores_QB, -np.inf)
        highest_Q = scores_QB.max(axis=1)
    for query, scores_B in enumerate(scores_QB):
        found = best[query]
        is_full = len(found.rows) == top_k
        if highest_Q[query] == -np.inf or (is_full and highest_Q[query] <= found.scores[-1]):
            continue
        candidates = _candidates(scores_B, top_k)
        # Negated scores, so that one ascending sort puts the best first and equal scores in row order.
        merged = [(-score, row) for row, score in zip(*found, strict=True)]
        merged += zip((-scores_B[candidates]).tolist(), rows[candidates].tolist(), strict=True)
        merged.sort()
        best[query] = RankedRows([row for _, row in merged[:top_k]], [-score for score, _ in merged[:top_k]])


def _candidates(scores_B: Vectors, top_k: int) -> Rows:
    """Positions that can be among the ``top_k`` best, including all ties with the last one."""
    threshold = -np.inf if len(scores_B) <= top_k else np.partition(scores_B, -top_k)[-top_k]
    return np.flatnonzero((scores_B >= threshold) & (scores_B > -np.inf))
