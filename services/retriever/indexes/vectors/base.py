"""Defines vector indexes: their types and interfaces, how they are built and searched, and how blocks are merged."""

from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from services.retriever.indexes.vectors.passage_vectors import PassageVectors
from services.retriever.ranking import RankedRows

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

# Below these, recall of real sentence vectors falls under 0.9: IVF64,Flat has 0.948 with 16 lists, and 0.478 with
# FAISS's own default of one (docs/performance.md).
MIN_NPROBE = 16
DEFAULT_EF_SEARCH = 128


class Unservable(ConfigurationError):
    """This machine or these settings cannot serve the vectors, whose files may be intact.

    It is no damage of an index: an older one must not silently take the place of the current one.
    """


class SearchEffort(Section):
    """How thoroughly approximate indexes are searched: larger values are slower and find more."""

    nprobe: PositiveInt | None = Field(default=None, description="Lists of an IVF index to scan; unset: as built.")
    ef_search: PositiveInt | None = Field(default=None, description="Candidates of an HNSW search; unset: as built.")

    def nprobe_of(self, lists: int) -> int:
        """Lists to scan in an index of this many: by default the square root of their number, at least 16."""
        return min(self.nprobe or max(MIN_NPROBE, ceil(sqrt(lists))), lists)

    @property
    def ef(self) -> int:
        return self.ef_search or DEFAULT_EF_SEARCH

    def or_else(self, other: "SearchEffort") -> "SearchEffort":
        """This effort, with unset values taken from ``other``."""
        return SearchEffort(nprobe=self.nprobe or other.nprobe, ef_search=self.ef_search or other.ef_search)


DEFAULT_EFFORT = SearchEffort()


class ExactSettings(Section):
    """Where and how exact indexes are searched."""

    device: str = Field(
        default="cpu",
        description="cpu, over the mapped file; cuda (all visible GPUs) or cuda:0,cuda:1: from their memory.",
    )
    dtype: Literal["float16", "bfloat16"] = Field(default="float16", description="Of the vectors on GPUs.")
    rescore: bool = Field(default=False, description="Rank the best rows of GPUs by the file's float32 vectors.")

    @property
    def key(self) -> str:
        """What scores depend on; empty if they are those of the file."""
        return "" if self.device == "cpu" or self.rescore else self.dtype


ON_CPU = ExactSettings()


@dataclass(frozen=True)
class VectorPlan:
    """How the vectors of an index are to be stored.

    Attributes:
        faiss_type: a FAISS factory string; None keeps plain vectors for exact search.
        import_faiss: an index file of another builder to use instead of encoding the passages.
        effort: how thoroughly to search the FAISS index; the retriever's settings may override it later.
    """

    faiss_type: str | None = None
    import_faiss: Path | None = None
    effort: SearchEffort = DEFAULT_EFFORT

    @property
    def storage(self) -> str:
        """The key in ``VECTOR_STORAGES``."""
        return "faiss" if self.faiss_type or self.import_faiss else "exact"


class RecallRecord(Section):
    """Recall measured at build time: the mean share of the exact first ``at`` rows that the index found."""

    at: int
    queries: int
    recall: float


class VectorIndex(Protocol):
    """Ranks rows for query vectors: the exact index, or FAISS."""

    @property
    def dimensions(self) -> int: ...

    def __len__(self) -> int: ...

    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[RankedRows]:
        """Up to ``top_k`` rows per query, best first, of those in ``allowed`` (ascending; None: all)."""
        ...


class VectorStorage(Protocol):
    """A way to store vectors: builds an index of them, and opens it for searching."""

    def build(self, folder: Path, vectors: PassageVectors, plan: VectorPlan) -> RecallRecord | None:
        """Write the vectors into ``folder``; return the recall of an approximate index, if it could be measured."""
        ...

    def open(self, folder: Path, dimensions: int, effort: SearchEffort, exact: ExactSettings) -> VectorIndex:
        """Map what ``build`` wrote.

        Raises:
            Unservable: the device, the memory or a package that it needs is missing.
            ConfigurationError: it is missing or unreadable.
        """
        ...


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
        # ``<=``, because an equal score in a later row loses to the rows that are there already. Most of all, this
        # saves the partition of blocks that have nothing to add.
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
    # partition finds the score at the cut in O(B); sorting the block would take O(B log B).
    threshold = -np.inf if len(scores_B) <= top_k else np.partition(scores_B, -top_k)[-top_k]
    return np.flatnonzero((scores_B >= threshold) & (scores_B > -np.inf))
