"""Ranks passages by BM25 and by vectors; the rankings are fused."""

from collections.abc import Sequence

from services.retriever.indexes.base import BuildInputs, BuiltParts, OpenInputs
from services.retriever.indexes.bm25 import Bm25Kind
from services.retriever.indexes.dense import DenseKind
from services.retriever.ranking import Ranker


class HybridKind:
    """Indexes of BM25 and vectors, which can be searched by either or by both."""

    has_vectors = True

    def __init__(self) -> None:
        self._bm25, self._dense = Bm25Kind(), DenseKind()

    def build(self, inputs: BuildInputs) -> BuiltParts:
        """Build both parts."""
        language = self._bm25.build(inputs).language
        return self._dense.build(inputs)._replace(language=language)

    def open(self, inputs: OpenInputs) -> dict[str, Sequence[Ranker]]:
        parts = self._bm25.open(inputs) | self._dense.open(inputs)
        return {**parts, "hybrid": (*parts["bm25"], *parts["dense"])}
