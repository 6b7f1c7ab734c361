"""A new storage of vectors: exact search over 16-bit numbers."""

from pathlib import Path

import numpy as np

from services.retriever.indexes.vectors.base import ExactSettings, SearchEffort, VectorPlan
from services.retriever.indexes.vectors.exact import ExactIndex
from services.retriever.indexes.vectors.passage_vectors import PassageVectors


class HalfStorage:
    """Keeps vectors in half of the bytes, and expands them when the index is opened."""

    def build(self, folder: Path, vectors: PassageVectors, plan: VectorPlan) -> None:
        folder.mkdir(parents=True)
        np.save(folder / "vectors.npy", np.concatenate(list(vectors.blocks())).astype(np.float16))

    def open(self, folder: Path, dimensions: int, effort: SearchEffort, exact: ExactSettings) -> ExactIndex:
        return ExactIndex(np.load(folder / "vectors.npy").astype(np.float32))
