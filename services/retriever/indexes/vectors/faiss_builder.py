"""Builds a FAISS index from a factory string: trains on a random sample, adds rows, and measures recall."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from searchrl.errors import ConfigurationError
from services.retriever.indexes.vectors.base import (
    DEFAULT_EFFORT,
    RecallRecord,
    Rows,
    SearchEffort,
    Vectors,
    merge_best,
)
from services.retriever.indexes.vectors.faiss_index import INDEX_FILE, FaissIndex
from services.retriever.indexes.vectors.faiss_structure import core_of
from services.retriever.indexes.vectors.passage_vectors import PassageVectors
from services.retriever.ranking import RankedRows

logger = logging.getLogger(__name__)

# 0.6 GB at 768 dimensions. FAISS asks for 39 rows per list of an IVF index, and warns below that; IVF65536 therefore
# trains on 2.6 million rows, which take 8 GB.
_TRAINING_ROWS = 200_000
_ROWS_PER_LIST = 40
_SEED = 0  # any fixed value: builds of one corpus train on the same sample
# FAISS ends the process, instead of raising, while it links a graph of fewer than two neighbors; an IVF of no list
# fails only at the first search.
_UNSAFE_FACTORY = re.compile(r"HNSW[01](?![0-9])|IVF0(?![0-9])")
# An index that finds fewer than one row in ten misreads its vectors (SQ8_direct takes floats for bytes). A smaller
# corpus than this proves nothing.
_USELESS_RECALL = 0.1
_ROWS_FOR_A_VERDICT = 200
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


@dataclass(frozen=True)
class BuiltIndex:
    """A finished index and its recall (None if there were no queries to measure it with)."""

    index: FaissIndex
    recall: RecallRecord | None


def build_faiss(
    folder: Path,
    source: PassageVectors,
    *,
    factory: str,
    effort: SearchEffort = DEFAULT_EFFORT,
    recall_queries_QD: Vectors | None = None,
    training_rows: int = _TRAINING_ROWS,
) -> BuiltIndex:
    """Build the inner-product index that ``factory`` names (``Flat``, ``HNSW64``, ``IVF4096,Flat`` ...) in ``folder``.

    An index that needs training gets a random sample of ``training_rows`` rows, the same in every build: corpora are
    often sorted, so their first rows resemble each other. A corpus of at most that many rows is trained on completely.

    Raises:
        ConfigurationError: FAISS does not know the factory string, cannot build or search such an index, or has too
            few rows to train it.
    """
    answers = ExactAnswers(recall_queries_QD) if recall_queries_QD is not None and len(recall_queries_QD) else None
    index: faiss.Index | None = None
    pending: list[Vectors] = []
    for block_BD in source.blocks():
        if index is None:
            index = _create(block_BD.shape[1], factory)
            training_rows = max(training_rows, _ROWS_PER_LIST * _lists_of(index))
            # The sample is encoded a second time when its rows are added. Keeping all vectors until the index is
            # trained would take 64 GB for 21 million rows of 768 dimensions.
            if not index.is_trained and len(source) > training_rows:
                sample = np.random.default_rng(_SEED).choice(len(source), training_rows, replace=False)
                _train(index, np.concatenate(list(source.blocks(np.sort(sample)))), factory)
        if answers is not None:
            answers.add(block_BD)
        pending.append(block_BD)
        if index.is_trained:
            _add(index, pending, factory)
    if index is None:
        raise ConfigurationError("there is no vector to index")
    if pending:  # not trained yet: there were few enough rows to train on all of them
        _train(index, np.concatenate(pending), factory)
        _add(index, pending, factory)
    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(folder / INDEX_FILE))
    # Opened as it will be served, so that recall is measured with the same file and effort.
    built = FaissIndex.open(folder / INDEX_FILE, effort)
    return BuiltIndex(built, _measure(built, answers, factory))


def _create(dimensions: int, factory: str) -> faiss.Index:
    if _UNSAFE_FACTORY.search(factory):
        raise ConfigurationError(f"'{factory}' names an index without links or lists; choose a larger number")
    try:
        return faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigurationError(
            f"FAISS knows no index type '{factory}' with inner products for {dimensions} dimensions"
        ) from error


def _lists_of(index: faiss.Index) -> int:
    core = core_of(index)
    return core.nlist if isinstance(core, faiss.IndexIVF) else 0


def _train(index: faiss.Index, rows_ND: Vectors, factory: str) -> None:
    if index.is_trained:
        return
    try:
        index.train(np.ascontiguousarray(rows_ND, dtype=np.float32))
    except RuntimeError as error:
        raise ConfigurationError(f"'{factory}' cannot be trained on {len(rows_ND)} rows: {_reason(error)}") from error


def _add(index: faiss.Index, pending: list[Vectors], factory: str) -> None:
    rows_ND = np.ascontiguousarray(np.concatenate(pending), dtype=np.float32)
    pending.clear()
    try:
        index.add(rows_ND)
    except RuntimeError as error:
        raise ConfigurationError(
            f"'{factory}' cannot be filled step by step, so it cannot be built here ({_reason(error)}); "
            "choose a type such as Flat, HNSW32, IVF1024,Flat or IVF1024,SQ8"
        ) from error


def _measure(built: FaissIndex, answers: ExactAnswers | None, factory: str) -> RecallRecord | None:
    """Search the finished index once, since some types fail only then, and measure its recall if there are queries.

    Raises:
        ConfigurationError: the index cannot be searched, or finds almost nothing.
    """
    try:
        built.search(np.zeros((1, built.dimensions), dtype=np.float32), 1, None)
        record = answers.measure_recall(built) if answers is not None else None
    except RuntimeError as error:
        raise ConfigurationError(f"'{factory}' cannot be searched: {_reason(error)}") from error
    if record is None:
        return None
    if record.recall < _USELESS_RECALL and len(built) >= _ROWS_FOR_A_VERDICT:
        raise ConfigurationError(f"'{factory}' finds only {record.recall:.0%} of the right rows; choose another type")
    if record.recall < LOW_RECALL:
        logger.warning(
            "recall@%d of '%s' is %.2f, below %.1f: raise --nprobe or --ef-search, or choose a type that keeps more",
            record.at, factory, record.recall, LOW_RECALL,
        )  # fmt: skip
    return record


def _reason(error: RuntimeError) -> str:
    """FAISS's message without the C++ signature before it."""
    return str(error).rpartition("Error: ")[2].strip()


def _share(exact: RankedRows, found: RankedRows) -> float:
    """Share of the exact rows that were found.

    Equal passages have equal scores and count for each other; otherwise duplicates in a corpus would lower its recall.
    """
    last = exact.scores[-1]
    hits = sum(row in exact.rows or abs(score - last) < _SAME_SCORE for row, score in zip(*found, strict=True))
    return min(hits, len(exact.rows)) / len(exact.rows)
