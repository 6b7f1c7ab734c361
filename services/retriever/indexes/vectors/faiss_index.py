"""Finds nearest vectors with FAISS: index files of any builder and type, mapped if the type allows it."""

import logging
from pathlib import Path

import faiss
import numpy as np

from searchrl.errors import ConfigurationError
from services.retriever.indexes.vectors.base import DEFAULT_EFFORT, Rows, SearchEffort, Unservable, Vectors, merge_best
from services.retriever.indexes.vectors.faiss_structure import (
    apply_transforms,
    core_of,
    parameters_for,
    set_effort,
    stored_vectors,
)
from services.retriever.ranking import RankedRows

logger = logging.getLogger(__name__)

INDEX_FILE = "index.faiss"
# FAISS scans the vectors once per query unless batch * dimensions passes this threshold, even when one scan could
# serve the entire batch; see distance_compute_blas_threshold in faiss/utils/distances.cpp.
_BLAS_THRESHOLD = 1
# Rows per matrix product, eight times FAISS's default: 16 MB of scores for 512 queries. More take more memory.
_BLAS_DATABASE_ROWS = 8_192
# Comparing with each of up to this many allowed rows costs less than an approximate search, and misses none.
_FEW_ROWS = 10_000
# Growth of the number of results from one search to the next; a smaller one repeats the search more often. From three
# results to all of a million rows takes ten searches.
_OVER_FETCH = 4
# ``_similarity`` computes these two; of FAISS's other metrics, e.g. L1, it would rank allowed rows by another distance
# than the index ranks all rows.
_METRICS = (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2)
# For large numbers of results, FAISS 1.15 reads beyond its memory in these types, which ends the process.
_UNSAFE_TYPES = (faiss.IndexIVFAdditiveQuantizerFastScan,)


class FaissIndex:
    """A FAISS index of any factory type. Called by one thread at a time."""

    def __init__(self, index: faiss.Index, effort: SearchEffort = DEFAULT_EFFORT) -> None:
        # Global variables of FAISS: they apply to every index in this process.
        faiss.cvar.distance_compute_blas_threshold = _BLAS_THRESHOLD
        faiss.cvar.distance_compute_blas_database_bs = _BLAS_DATABASE_ROWS
        self._owner = index  # what faiss.downcast_index returns does not keep the index alive
        self._index = faiss.downcast_index(index)
        self._core = core_of(index)
        if isinstance(self._core, _UNSAFE_TYPES):
            raise Unservable(
                f"an index of FAISS's type {type(self._core).__name__} cannot be served; "
                "choose a type without additive quantizers and fast scan together"
            )
        if index.metric_type not in _METRICS:
            raise Unservable(
                f"an index with FAISS's metric {index.metric_type} (faiss.MetricType) cannot be served; "
                "build it with METRIC_INNER_PRODUCT or METRIC_L2"
            )
        self._smaller_is_better = index.metric_type != faiss.METRIC_INNER_PRODUCT
        self._selects: bool | None = None
        set_effort(index, effort)

    @classmethod
    def open(cls, file: Path, effort: SearchEffort = DEFAULT_EFFORT) -> "FaissIndex":
        """Open an index file; pages are mapped, not read, where FAISS can do so.

        Raises:
            ConfigurationError: missing, or not an index this FAISS can read.
        """
        problem: Exception | None = None
        # The first flag maps the codes of flat types and of HNSW, the second the lists of an IVF index. FAISS
        # implements each for some types only; without flags it reads the entire file into memory.
        for flags in (faiss.IO_FLAG_MMAP_IFC, faiss.IO_FLAG_MMAP, 0):
            try:
                return cls(faiss.read_index(str(file), flags), effort)
            except RuntimeError as error:
                logger.debug("FAISS cannot open %s with flags %d", file, flags)
                problem = error
        raise ConfigurationError(f"{file} is not a FAISS index that this version can read: {problem}") from problem

    @property
    def dimensions(self) -> int:
        return self._index.d

    @property
    def raw(self) -> faiss.Index:
        return self._index

    def __len__(self) -> int:
        return self._index.ntotal

    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[RankedRows]:
        """Up to ``top_k`` rows per query; fewer if an approximate index finds fewer (FAISS pads with -1).

        A filter works with every type: by FAISS's own selector if the type has one, else by comparing with each allowed
        row, or by asking for more results than needed. The first way that gives enough results is taken:

            allowed rows     HNSW                      other types with a selector    types without a selector
            up to 10,000     compare with each         selector, all lists            compare with each, ask for more
            more             selector, then compare    selector, then all lists       ask for more

        "Compare with each" needs a type that gives its vectors back.
        """
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        if allowed is None:
            return self._search(queries_QD, top_k, None)
        is_graph = isinstance(self._core, faiss.IndexHNSW)
        is_few = len(allowed) <= _FEW_ROWS
        if is_few and (is_graph or not self._takes_selector()):  # a graph walk rarely meets a few rows among many
            found = self._compare_with_each(queries_QD, top_k, allowed)
            if found is not None:
                return found
        if not self._takes_selector():
            return self._search_more(queries_QD, top_k, allowed)
        selector = faiss.IDSelectorBatch(allowed)
        found = self._search(queries_QD, top_k, parameters_for(self._index, selector, is_exhaustive=is_few))
        wanted = min(top_k, len(allowed))
        if all(len(ranked.rows) >= wanted for ranked in found):
            return found
        if is_graph:
            return self._compare_with_each(queries_QD, top_k, allowed) or found
        return self._search(queries_QD, top_k, parameters_for(self._index, selector, is_exhaustive=True))

    def _search(self, queries_QD: Vectors, top_k: int, parameters: faiss.SearchParameters | None) -> list[RankedRows]:
        limit = min(top_k, len(self))
        distances_QK, rows_QK = self._index.search(queries_QD, limit, params=parameters)
        return [self._ranked(distances, rows) for distances, rows in zip(distances_QK, rows_QK, strict=True)]

    def _takes_selector(self) -> bool:
        """Whether this type can filter by itself; FAISS raises if it cannot, so a search is tried once."""
        if self._selects is None:
            selector = faiss.IDSelectorRange(0, 1)
            probe_1D = np.zeros((1, self.dimensions), dtype=np.float32)
            try:
                self._index.search(probe_1D, 1, params=parameters_for(self._index, selector, is_exhaustive=False))
                self._selects = True
            except RuntimeError as error:
                logger.info("this FAISS type cannot filter by itself, so filters are applied outside of it: %s", error)
                self._selects = False
        return self._selects

    def _compare_with_each(self, queries_QD: Vectors, top_k: int, allowed: Rows) -> list[RankedRows] | None:
        """Exact search among the allowed rows' stored vectors; None if the type cannot give these back."""
        inner, inner_QD = apply_transforms(self._index, queries_QD)
        best = [RankedRows([], []) for _ in queries_QD]
        for start in range(0, len(allowed), _FEW_ROWS):
            rows = allowed[start : start + _FEW_ROWS]
            stored_ND = stored_vectors(inner, rows)
            if stored_ND is None:
                return None
            merge_best(best, self._similarity(inner_QD, stored_ND), rows, top_k)
        return best

    def _similarity(self, queries_QD: Vectors, stored_ND: Vectors) -> Vectors:
        if self._smaller_is_better:
            return -faiss.pairwise_distances(queries_QD, stored_ND)
        return queries_QD @ stored_ND.T

    def _search_more(self, queries_QD: Vectors, top_k: int, allowed: Rows) -> list[RankedRows]:
        """Ask for more results until enough of them are allowed, finally for all rows."""
        wanted = min(top_k, len(allowed))
        parameters = parameters_for(self._index, None, is_exhaustive=True)
        limit = top_k
        while True:
            limit = min(limit * _OVER_FETCH, len(self))
            kept = [_keep(ranked, allowed, top_k) for ranked in self._search(queries_QD, limit, parameters)]
            if limit == len(self) or all(len(ranked.rows) >= wanted for ranked in kept):
                return kept

    def _ranked(self, distances: Vectors, rows: Rows) -> RankedRows:
        found = (rows >= 0) & np.isfinite(distances)
        scores = -distances[found] if self._smaller_is_better else distances[found]
        # FAISS returns equal scores in any order; ``RankedRows`` promises row order.
        ordered = sorted(zip((-scores).tolist(), rows[found].tolist(), strict=True))
        return RankedRows([row for _, row in ordered], [-negated for negated, _ in ordered])


def _keep(ranked: RankedRows, allowed: Rows, top_k: int) -> RankedRows:
    is_allowed = np.isin(ranked.rows, allowed).tolist()
    kept = [pair for pair, keeps in zip(zip(*ranked, strict=True), is_allowed, strict=True) if keeps][:top_k]
    return RankedRows([row for row, _ in kept], [score for _, score in kept])
