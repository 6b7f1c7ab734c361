"""Stores vectors in FAISS indexes. Importing this module does not import FAISS."""

from pathlib import Path

from services.retriever.indexes.vectors.base import ExactSettings, RecallRecord, SearchEffort, VectorIndex, VectorPlan
from services.retriever.indexes.vectors.passage_vectors import PassageVectors


class FaissStorage:
    """Builds an index of any FAISS type, or imports the file of another builder.

    FAISS is imported in the methods, because it takes 60 MB of memory that other indexes do not need.
    """

    def build(self, folder: Path, vectors: PassageVectors, plan: VectorPlan) -> RecallRecord | None:
        if plan.import_faiss is not None:
            from services.retriever.indexes.vectors.faiss_import import import_index

            import_index(plan.import_faiss, vectors, folder)
            return None
        from services.retriever.indexes.vectors.faiss_builder import build_faiss

        return build_faiss(
            folder,
            vectors,
            factory=plan.faiss_type or "Flat",
            effort=plan.effort,
            recall_queries_QD=vectors.sample_queries(),
        ).recall

    def open(self, folder: Path, dimensions: int, effort: SearchEffort, exact: ExactSettings) -> VectorIndex:
        from services.retriever.indexes.vectors.faiss_index import INDEX_FILE, FaissIndex

        return FaissIndex.open(folder / INDEX_FILE, effort)
