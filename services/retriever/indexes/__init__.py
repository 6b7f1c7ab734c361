"""Kinds of indexes, by their name in ``--kind`` and the manifest; each turns queries into ranked row numbers."""

from services.retriever.indexes.base import IndexKind
from services.retriever.indexes.bm25 import Bm25Kind
from services.retriever.indexes.dense import DenseKind
from services.retriever.indexes.hybrid import HybridKind

INDEX_KINDS: dict[str, IndexKind] = {"bm25": Bm25Kind(), "dense": DenseKind(), "hybrid": HybridKind()}
