"""Finds nearest vectors exactly: inner products, block by block, for an entire batch of queries at once."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from searchrl.errors import ConfigurationError
from services.retriever.indexes.vectors.base import (
    ExactSettings,
    Rows,
    SearchEffort,
    Unservable,
    VectorIndex,
    VectorPlan,
    Vectors,
    merge_best,
)
from services.retriever.indexes.vectors.passage_vectors import PassageVectors
from services.retriever.ranking import RankedRows

VECTORS_FILE = "vectors.f32"
# 50 MB of vectors of 768 dimensions, and 34 MB of scores for 512 queries; more would need more memory, fewer would call
# the matrix product more often.
_BLOCK_ROWS = 16_384


class ExactIndex:
    """Exact inner product search over float32 vectors in a mapped file.

    The file is read once per batch, not once per query. The cost of the products still grows with the number of
    queries; docs/performance.md has the measured rates.
    """

    def __init__(self, vectors_ND: Vectors) -> None:
        self.vectors_ND = vectors_ND

    @classmethod
    def build(cls, folder: Path, blocks: Iterable[Vectors]) -> "ExactIndex":
        """Write vectors, given in blocks of rows, into ``folder`` and open it."""
        folder.mkdir(parents=True, exist_ok=True)
        dimensions = 0
        with (folder / VECTORS_FILE).open("wb") as file:
            for block_BD in blocks:
                dimensions = block_BD.shape[1]
                # Little-endian by name: the file has no header that would say so.
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
        return self.vectors_ND.shape[1]

    def __len__(self) -> int:
        return self.vectors_ND.shape[0]

    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[RankedRows]:
        """Up to ``top_k`` rows per query by inner product; equal scores in row order."""
        count = len(self) if allowed is None else len(allowed)
        best = [RankedRows([], []) for _ in range(len(queries_QD))]
        for start in range(0, count, _BLOCK_ROWS):
            end = min(start + _BLOCK_ROWS, count)
            rows = np.arange(start, end) if allowed is None else allowed[start:end]
            # A slice is a view of the mapped file; picking allowed rows copies them, one block at a time.
            block_BD = self.vectors_ND[start:end] if allowed is None else self.vectors_ND[rows]
            merge_best(best, queries_QD @ block_BD.T, rows, top_k)
        return best


class ExactStorage:
    """Keeps plain vectors in one file."""

    def build(self, folder: Path, vectors: PassageVectors, plan: VectorPlan) -> None:
        ExactIndex.build(folder, vectors.blocks())

    def open(self, folder: Path, dimensions: int, effort: SearchEffort, exact: ExactSettings) -> VectorIndex:
        index = ExactIndex.open(folder, dimensions)
        if exact.device == "cpu":
            return index
        try:
            from services.retriever.indexes.vectors.gpu_exact import GpuExactIndex
        except ImportError as error:
            raise Unservable(
                f"exact search on {exact.device} needs torch ({error}): pip install 'searchrl[encoders]'"
            ) from error
        return GpuExactIndex(index.vectors_ND, exact)
