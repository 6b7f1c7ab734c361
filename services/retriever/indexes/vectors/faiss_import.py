"""Verifies that a FAISS file of another builder belongs to this corpus and this encoder.

Nothing in such a file says so. An index of another encoder, or of the corpus in another order, answers every query with
unrelated passages.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from searchrl.errors import ConfigurationError
from searchrl.input_files import check_no_lfs_pointers
from services.retriever.indexes.vectors.base import Rows, Vectors
from services.retriever.indexes.vectors.faiss_index import INDEX_FILE, FaissIndex
from services.retriever.indexes.vectors.faiss_structure import (
    apply_transforms,
    core_of,
    row_numbers,
    stored_vectors,
)
from services.retriever.indexes.vectors.passage_vectors import PassageVectors

# A file in which a third of the rows do not fit has 58 fitting ones in the sample with a chance of 8 in a million.
SAMPLE = 64
_SEED = 0  # any fixed value: the same file is always judged alike
# One in ten may differ: another builder may have cut long passages earlier than this encoder does.
_NEEDED_SHARE = 0.9
# Half precision leaves 0.9999; a passage cut elsewhere about 0.97; another model, or another passage, far less.
_NEEDED_COSINE = 0.95
# Compressed vectors may rank near duplicates before the passage itself; with those of another encoder, a passage is
# among the first ten by chance only.
_SEARCH_DEPTH = 10


def import_index(file: Path, vectors: PassageVectors, folder: Path) -> None:
    """Copy a FAISS file of another builder into ``folder``, after checking that it belongs to corpus and encoder.

    Raises:
        ConfigurationError: it does not.
    """
    check_no_lfs_pointers(file)
    index = FaissIndex.open(file)
    # Counts and dimensions first: they cost nothing, while the sample has to be encoded.
    if len(index) != len(vectors):
        raise ConfigurationError(f"{file} holds {len(index)} vectors, the corpus has {len(vectors)} passages")
    if index.dimensions != vectors.dimensions:
        raise ConfigurationError(f"{file} has {index.dimensions} dimensions, the encoder has {vectors.dimensions}")
    check_imported(file, index, len(vectors), lambda rows: np.concatenate(list(vectors.blocks(rows))))
    folder.mkdir(parents=True)
    # A copy, not a hard link: its builder may write the file again, and would then change a generation in service.
    shutil.copyfile(file, folder / INDEX_FILE)


def check_imported(file: Path, index: FaissIndex, passages: int, encode: Callable[[Rows], Vectors]) -> None:
    """Compare the row numbers with 0..N-1, and a random sample of the vectors with those of the encoder.

    Raises:
        ConfigurationError: the file does not fit; the message says how many of the sampled passages agreed.
    """
    _check_row_numbers(file, index.raw, passages)
    rows = np.sort(np.random.default_rng(_SEED).choice(passages, min(SAMPLE, passages), replace=False))
    encoded_ND = encode(rows)
    inner, inner_ND = apply_transforms(index.raw, encoded_ND)
    stored_ND = stored_vectors(inner, rows)
    if stored_ND is None:
        agreed = _count_finding_themselves(index, encoded_ND, rows)
    else:
        if not np.isfinite(stored_ND).all():
            raise ConfigurationError(f"{file} holds vectors with infinite or undefined numbers; rebuild it")
        agreed = _count_agreeing(inner_ND, stored_ND, is_lossless=_keeps_floats(inner))
    if agreed < _NEEDED_SHARE * len(rows):
        raise ConfigurationError(
            f"{file} does not belong to this corpus and encoder: {agreed} of {len(rows)} sampled passages have the "
            "vector that the encoder gives them. Is it the right encoder (and --passage-prefix, --max-tokens), and is "
            "the corpus in the order in which the file was built?"
        )


def _check_row_numbers(file: Path, index: faiss.Index, passages: int) -> None:
    numbers = row_numbers(index)
    if numbers is not None and not np.array_equal(numbers, np.arange(passages)):
        raise ConfigurationError(
            f"{file} numbers its vectors from {numbers[0]} to {numbers[-1]} with ids of its own; "
            f"they must be the rows of the corpus, 0 to {passages - 1}: build it with add() instead of add_with_ids()"
        )


def _count_agreeing(encoded_ND: Vectors, stored_ND: Vectors, *, is_lossless: bool) -> int:
    """How many passages are nearest to their own stored vector, and near enough if storing lost nothing."""
    similarity_NN = _normalize(encoded_ND) @ _normalize(stored_ND).T
    own_N = similarity_NN.diagonal()
    is_nearest_N = own_N >= similarity_NN.max(axis=0) - 1e-4  # equal passages share their vector
    return int((is_nearest_N & (own_N >= (_NEEDED_COSINE if is_lossless else 0.0))).sum())


def _count_finding_themselves(index: FaissIndex, encoded_ND: Vectors, rows: Rows) -> int:
    """How many passages are among the first results for their own vector; for types that give no vectors back."""
    found = index.search(encoded_ND, _SEARCH_DEPTH, None)
    return sum(row in ranked.rows for row, ranked in zip(rows.tolist(), found, strict=True))


def _keeps_floats(index: faiss.Index) -> bool:
    """Whether a stored vector takes at least two bytes per dimension, so that little is lost."""
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.refine_index)
    index = core_of(index)
    try:
        return index.sa_code_size() >= 2 * index.d
    except RuntimeError:
        return False


def _normalize(vectors_ND: Vectors) -> Vectors:
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
