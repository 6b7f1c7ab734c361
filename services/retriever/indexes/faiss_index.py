"""Which vectors are nearest, asked of FAISS? Files of any builder, mapped where their type allows it."""

import logging
from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np

from searchrl.errors import ConfigurationError
from services.retriever.indexes.dense_index import Rows, Vectors
from services.retriever.indexes.ranked_rows import RankedRows

logger = logging.getLogger(__name__)

INDEX_FILE = "index.faiss"
# FAISS scans the vectors once per query unless batch * dimensions passes this threshold, even when one scan could
# serve the whole batch; see distance_compute_blas_threshold in faiss/utils/distances.cpp.
_BLAS_THRESHOLD = 1
_BLAS_DATABASE_ROWS = 8_192
_FEW_ROWS = 10_000


class FaissIndex:
    """A FAISS index of any factory type. Called by one thread at a time."""

    def __init__(self, index: faiss.Index) -> None:
        faiss.cvar.distance_compute_blas_threshold = _BLAS_THRESHOLD
        faiss.cvar.distance_compute_blas_database_bs = _BLAS_DATABASE_ROWS
        self._index = index
        self._smaller_is_better = index.metric_type != faiss.METRIC_INNER_PRODUCT

    @classmethod
    def build(
        cls, folder: Path, blocks: Iterable[Vectors], *, factory: str, training_rows: int = 200_000
    ) -> "FaissIndex":
        """Build the inner-product index that ``factory`` names (``Flat``, ``HNSW64``, ``IVF4096,Flat`` ...).

        An index that needs training gets the first ``training_rows`` rows.

        Raises:
            ConfigurationError: FAISS does not know the factory string, or there are too few rows to train it.
        """
        pending: list[Vectors] = []
        index: faiss.Index | None = None
        for block_BD in blocks:
            if index is None:
                index = _create(block_BD.shape[1], factory)
            pending.append(block_BD)
            if index.is_trained or sum(map(len, pending)) >= training_rows:
                _train_and_add(index, pending, factory)
        if index is None:
            raise ConfigurationError("there is no vector to index")
        if pending:
            _train_and_add(index, pending, factory)
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(index, str(folder / INDEX_FILE))
        return cls.open(folder / INDEX_FILE)

    @classmethod
    def open(cls, file: Path) -> "FaissIndex":
        """Open an index file; pages are mapped, not read, where FAISS can do so.

        Raises:
            ConfigurationError: missing, or not an index this FAISS can read.
        """
        problem: Exception | None = None
        for flags in (faiss.IO_FLAG_MMAP_IFC, faiss.IO_FLAG_MMAP, 0):
            try:
                return cls(faiss.read_index(str(file), flags))
            except RuntimeError as error:
                logger.debug("FAISS cannot open %s with flags %d", file, flags)
                problem = error
        raise ConfigurationError(f"{file} is no FAISS index that this version can read: {problem}") from problem

    @property
    def dimensions(self) -> int:
        return self._index.d

    def __len__(self) -> int:
        return self._index.ntotal

    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[RankedRows]:
        """Up to ``top_k`` rows per query; fewer where an approximate index finds fewer (FAISS pads with -1)."""
        if allowed is not None and len(allowed) <= _FEW_ROWS and isinstance(self._index, faiss.IndexHNSW):
            return self._search_few(queries_QD, top_k, allowed)
        parameters = None if allowed is None else _restricted_to(self._index, allowed)
        limit = min(top_k, len(self))
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        distances_QK, rows_QK = self._index.search(queries_QD, limit, params=parameters)
        return [self._ranked(distances, rows) for distances, rows in zip(distances_QK, rows_QK, strict=True)]

    def _search_few(self, queries_QD: Vectors, top_k: int, allowed: Rows) -> list[RankedRows]:
        """Compare with each allowed row: a graph walk rarely meets a few rows among many."""
        few = faiss.IndexFlat(self.dimensions, self._index.metric_type)
        few.add(self._index.reconstruct_batch(allowed))
        found = FaissIndex(few).search(queries_QD, top_k, None)
        return [RankedRows(allowed[ranked.rows].tolist(), ranked.scores) for ranked in found]

    def _ranked(self, distances: Vectors, rows: Rows) -> RankedRows:
        found = rows >= 0
        scores = -distances[found] if self._smaller_is_better else distances[found]
        ordered = sorted(zip((-scores).tolist(), rows[found].tolist(), strict=True))
        return RankedRows([row for _, row in ordered], [-negated for negated, _ in ordered])


def _create(dimensions: int, factory: str) -> faiss.Index:
    try:
        return faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigurationError(f"FAISS knows no index type '{factory}' for {dimensions} dimensions") from error


def _train_and_add(index: faiss.Index, pending: list[Vectors], factory: str) -> None:
    rows_ND = np.ascontiguousarray(np.concatenate(pending), dtype=np.float32)
    pending.clear()
    if not index.is_trained:
        try:
            index.train(rows_ND)
        except RuntimeError as error:
            raise ConfigurationError(f"'{factory}' cannot be trained on {len(rows_ND)} rows: {error}") from error
    index.add(rows_ND)


def _restricted_to(index: faiss.Index, allowed: Rows) -> faiss.SearchParameters:
    selector = faiss.IDSelectorBatch(allowed)
    parameters = faiss.SearchParameters()
    if isinstance(index, faiss.IndexIVF):
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = index.nlist if len(allowed) <= _FEW_ROWS else index.nprobe
    elif isinstance(index, faiss.IndexHNSW):
        parameters = faiss.SearchParametersHNSW()  # pyright: ignore[reportAttributeAccessIssue]
        parameters.efSearch = index.hnsw.efSearch
    parameters.sel = selector
    return parameters
