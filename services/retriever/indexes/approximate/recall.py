"""Measures the recall of an approximate index: how many of the exact results it finds."""

import numpy as np

from services.retriever.indexes.approximate.faiss_index import FaissIndex
from services.retriever.indexes.dense_index import Rows, Vectors, merge_best
from services.retriever.indexes.manifest import RecallRecord
from services.retriever.indexes.ranked_rows import RankedRows

RECALL_AT = 10  # the depth that benchmarks of approximate search report
# A reader of the first ten results misses one of ten at this value; below it the settings deserve a look.
LOW_RECALL = 0.9
_SAME_SCORE = 1e-4  # above the rounding of float32 inner products of unit vectors


class ExactAnswers:
    """The exact best rows of a few queries, collected while the vectors of a corpus are added block by block."""

    def __init__(self, queries_QD: Vectors) -> None:
        self._queries_QD = queries_QD
        self._best = [RankedRows([], []) for _ in queries_QD]
        self._seen = 0

    def add(self, block_BD: Vectors) -> None:
        """Compare the queries with the next rows of the corpus."""
        rows: Rows = np.arange(self._seen, self._seen + len(block_BD))
        merge_best(self._best, self._queries_QD @ block_BD.T, rows, RECALL_AT)
        self._seen += len(block_BD)

    def measure_recall(self, index: FaissIndex) -> RecallRecord:
        """Search the index with the same queries and compare."""
        found = index.search(self._queries_QD, RECALL_AT, None)
        shares = [_share(exact, ranked) for exact, ranked in zip(self._best, found, strict=True)]
        return RecallRecord(at=RECALL_AT, queries=len(shares), recall=round(float(np.mean(shares)), 4))


def _share(exact: RankedRows, found: RankedRows) -> float:
    """Share of the exact rows that were found.

    Equal passages have equal scores and count for each other; otherwise duplicates in a corpus would lower its recall.
    """
    last = exact.scores[-1]
    hits = sum(row in exact.rows or abs(score - last) < _SAME_SCORE for row, score in zip(*found, strict=True))
    return min(hits, len(exact.rows)) / len(exact.rows)
