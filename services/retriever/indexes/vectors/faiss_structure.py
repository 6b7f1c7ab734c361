"""Walks the nesting of a FAISS index: transforms, refinements and id maps around the index that does the work.

    OPQ16,IVF1024,PQ16,RFlat = IndexRefine(IndexPreTransform(OPQ, IndexIVFPQ), IndexFlat)

Every level has its own class of search parameters, its own way to number rows, and its own way to give vectors back.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from services.retriever.indexes.vectors.base import Rows, SearchEffort, Vectors

# A refined index asks its inner index for this many times the results and ranks them again by better vectors. With
# FAISS's own factor of 1 there is nothing to choose from, so that the refinement has no effect. A larger factor finds
# more and compares more vectors.
_REFINE_FACTOR = 4.0
_ID_MAPS = (faiss.IndexIDMap, faiss.IndexIDMap2)


def inner_of(index: faiss.Index) -> Any:
    """The index that ``index`` wraps; None if it wraps none."""
    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.base_index)
    if isinstance(index, (faiss.IndexPreTransform, *_ID_MAPS)):
        return faiss.downcast_index(index.index)
    return None


def levels(index: faiss.Index) -> Iterator[faiss.Index]:
    """The index and all that it wraps, from the outside in."""
    level: faiss.Index | None = faiss.downcast_index(index)
    while level is not None:
        yield level
        level = inner_of(level)


def core_of(index: faiss.Index) -> faiss.Index:
    """The innermost index, which determines how a search works."""
    *_, core = levels(index)
    return core


def set_effort(index: faiss.Index, effort: SearchEffort) -> None:
    """Make all searches of the index as thorough as ``effort`` says."""
    for level in levels(index):
        if isinstance(level, faiss.IndexRefine):
            level.k_factor = max(level.k_factor, _REFINE_FACTOR)
        elif isinstance(level, faiss.IndexIVF):
            level.nprobe = effort.nprobe_of(level.nlist)
            quantizer = faiss.downcast_index(level.quantizer)
            if isinstance(quantizer, faiss.IndexHNSW):  # a graph that selects the lists, so it must find ``nprobe``
                quantizer.hnsw.efSearch = max(effort.ef, 2 * level.nprobe)
        elif isinstance(level, faiss.IndexHNSW):
            level.hnsw.efSearch = effort.ef


def parameters_for(
    index: faiss.Index, selector: faiss.IDSelector | None, *, is_exhaustive: bool
) -> faiss.SearchParameters | None:
    """Search parameters that fit the nesting of ``index``; None if it takes none and needs none.

    ``is_exhaustive`` scans all lists of an IVF index. Not every type takes a selector: FAISS raises RuntimeError.
    """
    index = faiss.downcast_index(index)
    inner = inner_of(index)
    classes: Any = faiss  # the stubs lack what FAISS's Python wrapper adds to its classes
    if isinstance(index, faiss.IndexPreTransform):
        of_inner = parameters_for(inner, selector, is_exhaustive=is_exhaustive)
        return None if of_inner is None else classes.SearchParametersPreTransform(index_params=of_inner)
    if isinstance(index, faiss.IndexRefine):
        of_inner = parameters_for(inner, selector, is_exhaustive=is_exhaustive)
        if of_inner is None:
            return None
        return classes.IndexRefineSearchParameters(base_index_params=of_inner, k_factor=index.k_factor)
    if isinstance(index, _ID_MAPS):  # it translates the selector in the parameters of what it wraps
        return parameters_for(inner, selector, is_exhaustive=is_exhaustive)
    filtering = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexIVF):
        return classes.SearchParametersIVF(nprobe=index.nlist if is_exhaustive else index.nprobe, **filtering)
    if isinstance(index, faiss.IndexHNSW):
        return classes.SearchParametersHNSW(efSearch=index.hnsw.efSearch, **filtering)
    return classes.SearchParameters(**filtering) if filtering else None


def apply_transforms(index: faiss.Index, vectors_ND: Vectors) -> tuple[faiss.Index, Vectors]:
    """The index below its transforms, and the vectors as it sees them."""
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        for number in range(chain.size()):
            transform = faiss.downcast_VectorTransform(chain.at(number))
            vectors_ND = transform.apply(np.ascontiguousarray(vectors_ND, dtype=np.float32))
        index = faiss.downcast_index(index.index)
    return index, vectors_ND


def stored_vectors(index: faiss.Index, rows: Rows) -> Vectors | None:
    """The vectors of rows as an index below its transforms keeps them; None if its type cannot give them back."""
    index = faiss.downcast_index(index)
    try:
        if isinstance(index, faiss.IndexRefine):
            # The refinement's vectors: it exists because those of the base index are compressed more.
            return stored_vectors(index.refine_index, rows)
        if isinstance(index, _ID_MAPS):
            # FAISS reconstructs by id in an IndexIDMap2 only, so ids become places here.
            ids = faiss.vector_to_array(index.id_map)
            order = np.argsort(ids)
            return stored_vectors(index.index, order[np.searchsorted(ids, rows, sorter=order)])
        if isinstance(index, faiss.IndexIVF):
            return _from_lists(index, rows)
        return index.reconstruct_batch(rows)
    except RuntimeError:
        return None


def row_numbers(index: faiss.Index) -> Rows | None:
    """The ids that the index gives its vectors, sorted; None if it numbers them 0, 1, 2 ... itself."""
    for level in levels(index):
        if isinstance(level, _ID_MAPS):
            return np.sort(faiss.vector_to_array(level.id_map))
        if isinstance(level, faiss.IndexIVF):
            lists = [_ids_of_list(level, number) for number in range(level.nlist)]
            return np.sort(np.concatenate(lists))
    return None


def _from_lists(index: faiss.IndexIVF, rows: Rows) -> Vectors:
    """Find rows by scanning the lists: the table that FAISS would build instead takes 8 bytes per row of the index."""
    wanted = {row: place for place, row in enumerate(rows.tolist())}
    found_ND = np.full((len(rows), index.d), np.nan, dtype=np.float32)
    for number in range(index.nlist):
        ids = _ids_of_list(index, number)
        for offset in np.flatnonzero(np.isin(ids, rows)).tolist():
            place_D = np.empty(index.d, dtype=np.float32)
            index.reconstruct_from_offset(number, offset, faiss.swig_ptr(place_D))
            found_ND[wanted[int(ids[offset])]] = place_D
    return found_ND


def _ids_of_list(index: faiss.IndexIVF, number: int) -> Rows:
    lists: Any = index.invlists
    size = lists.list_size(number)
    if size == 0:
        return np.empty(0, dtype=np.int64)
    pointer = lists.get_ids(number)
    try:
        # astype copies: the pointer need not stay valid once the list is released.
        return faiss.rev_swig_ptr(pointer, size).astype(np.int64)
    finally:
        lists.release_ids(number, pointer)
