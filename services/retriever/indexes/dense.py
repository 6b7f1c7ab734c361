"""Ranks passages by the similarity of their vectors to the query's, in an exact or a FAISS index."""

from collections.abc import Mapping, Sequence

import numpy as np

from searchrl.errors import ServiceError
from services.retriever.corpora.passage_store import PassageStore
from services.retriever.encoders.base import Encoder
from services.retriever.indexes.base import BuildInputs, BuiltParts, OpenInputs, check_count, report_damage
from services.retriever.indexes.manifest import DamagedIndex
from services.retriever.indexes.vectors import VECTOR_STORAGES
from services.retriever.indexes.vectors.base import VectorIndex
from services.retriever.indexes.vectors.passage_vectors import PassageVectors
from services.retriever.ranking import RankedRows, Ranker

VECTORS_FOLDER = "vectors"


class DenseRanker:
    """Ranks rows for texts: encodes them and searches a vector index."""

    def __init__(self, encoder: Encoder, index: VectorIndex, passages: PassageStore) -> None:
        self._encoder = encoder
        self._index = index
        self._passages = passages

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        # Before the queries are encoded, which is wasted if no row passes the filter.
        allowed = self._passages.rows_with(filters)
        if allowed is not None and not len(allowed):
            return [RankedRows([], []) for _ in queries]
        queries_QD = self._encoder.encode_queries(queries)
        # Comparing with NaN would rank nothing, which looks like an answer. The batcher then ranks the queries of the
        # batch apart, so only those with such a vector fail.
        if not np.isfinite(queries_QD).all():
            raise ServiceError("the encoder gave a vector with infinite or undefined numbers for a query")
        return self._index.search(queries_QD, top_k, allowed)


class DenseKind:
    """Indexes of vectors alone."""

    has_vectors = True

    def build(self, inputs: BuildInputs) -> BuiltParts:
        """Encode all passages and store their vectors."""
        assert inputs.encoder is not None  # opened for every kind that has vectors
        vectors = PassageVectors(inputs.passages, inputs.encoder, inputs.progress)
        plan = inputs.plan.vectors
        recall = VECTOR_STORAGES[plan.storage].build(inputs.folder / VECTORS_FOLDER, vectors, plan)
        return BuiltParts(vectors=plan.storage, recall=recall)

    def open(self, inputs: OpenInputs) -> dict[str, Sequence[Ranker]]:
        folder, encoder = inputs.folder, inputs.manifest.encoder
        storage = VECTOR_STORAGES.get(inputs.manifest.vectors or "exact")
        if encoder is None:
            raise DamagedIndex(f"{folder} has vectors but names no encoder; rebuild the index")
        if storage is None:
            raise DamagedIndex(f"{folder} has vectors of unknown storage '{inputs.manifest.vectors}'")
        with report_damage():
            index = storage.open(folder / VECTORS_FOLDER, encoder.dimensions, inputs.effort, inputs.exact)
        check_count(inputs, "vector index", len(index))
        if index.dimensions != encoder.dimensions:
            raise DamagedIndex(
                f"{folder}: vectors have {index.dimensions} dimensions, the encoder has {encoder.dimensions}"
            )
        return {"dense": (DenseRanker(inputs.open_encoder(encoder), index, inputs.passages),)}
