"""Storages of vectors, by the name that the manifest records. Only the modules ``faiss_*`` import FAISS."""

from services.retriever.indexes.vectors.base import VectorStorage
from services.retriever.indexes.vectors.exact import ExactStorage
from services.retriever.indexes.vectors.faiss_storage import FaissStorage

VECTOR_STORAGES: dict[str, VectorStorage] = {"exact": ExactStorage(), "faiss": FaissStorage()}
