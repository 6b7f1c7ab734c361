"""FAISS files of other builders: their row numbers, their encoder and their order are checked."""

from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest

from searchrl.errors import ConfigurationError
from services.retriever.indexes.vectors.base import Rows, Vectors
from services.retriever.indexes.vectors.faiss_import import check_imported
from services.retriever.indexes.vectors.faiss_index import FaissIndex
from tests.fakes.vectors import vectors

COUNT = 600  # enough to train every type below, and to sample 64 passages of it
CORPUS_ND = vectors(COUNT, 16, 0)
TYPES = [
    "Flat", "SQfp16", "SQ8", "HNSW16", "IVF4,Flat", "IVF4,SQ8", "PQ8x4", "OPQ8,IVF4,PQ8x4", "PCA12,Flat",
    "PCAW12,Flat", "L2norm,Flat", "PQ8x4,RFlat", "IVF4,PQ8x4fs,RFlat", "IDMap,Flat", "IDMap2,HNSW16",
]  # fmt: skip


def made_by_another(
    tmp_path: Path,
    factory: str,
    ids: Rows | None = None,
    corpus_ND: Vectors = CORPUS_ND,
    metric: int = faiss.METRIC_INNER_PRODUCT,
) -> Path:
    file = tmp_path / "other.index"
    if ids is None and corpus_ND is CORPUS_ND:
        file.write_bytes(build(factory, metric))
    else:
        file.write_bytes(train(factory, metric, corpus_ND, ids))
    return file


@cache
def build(factory: str, metric: int) -> bytes:
    """Train each type once, because training takes most of the time."""
    return train(factory, metric, CORPUS_ND, None)


def train(factory: str, metric: int, corpus_ND: Vectors, ids: Rows | None) -> bytes:
    """Return the content of the file of an index."""
    index = faiss.index_factory(16, factory, metric)
    index.train(corpus_ND)
    if ids is None and not factory.startswith("IDMap"):
        index.add(corpus_ND)
    else:
        index.add_with_ids(corpus_ND, np.arange(COUNT) if ids is None else ids)
    return faiss.serialize_index(index).tobytes()


def check(file: Path, encoder_ND: Vectors = CORPUS_ND) -> None:
    check_imported(file, FaissIndex.open(file), COUNT, lambda rows: encoder_ND[rows])


@pytest.mark.parametrize("factory", TYPES)
def test_a_file_of_this_corpus_and_encoder_is_taken(tmp_path: Path, factory: str) -> None:
    check(made_by_another(tmp_path, factory))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat", "IDMap,Flat"])
def test_a_file_of_the_metric_l2_is_taken(tmp_path: Path, factory: str) -> None:
    check(made_by_another(tmp_path, factory, metric=faiss.METRIC_L2))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat", "IDMap,Flat"])
@pytest.mark.parametrize("metric", [faiss.METRIC_L1, faiss.METRIC_Linf, faiss.METRIC_Canberra])
def test_a_file_of_another_metric_is_refused(tmp_path: Path, factory: str, metric: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"metric {metric} .* METRIC_INNER_PRODUCT or METRIC_L2"):
        check(made_by_another(tmp_path, factory, metric=metric))


@pytest.mark.parametrize("factory", TYPES)
def test_a_file_of_another_encoder_is_refused(tmp_path: Path, factory: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\b\d of 64 sampled passages.*right encoder"):
        check(made_by_another(tmp_path, factory), vectors(COUNT, 16, 99))


@pytest.mark.parametrize("factory", TYPES)
def test_a_file_of_the_corpus_in_another_order_is_refused(tmp_path: Path, factory: str) -> None:
    with pytest.raises(ConfigurationError, match=r"of 64 sampled passages.*order"):
        check(made_by_another(tmp_path, factory), np.ascontiguousarray(CORPUS_ND[::-1]))


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,HNSW16", "IVF4,Flat"])
def test_ids_that_are_no_row_numbers_are_refused_with_their_range(tmp_path: Path, factory: str) -> None:
    with pytest.raises(ConfigurationError, match=r"from 1000 to 1599 .*0 to 599.*add_with_ids"):
        check(made_by_another(tmp_path, factory, np.arange(COUNT) + 1000))


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,Flat", "IVF4,Flat"])
def test_row_numbers_in_another_order_are_judged_by_the_vectors(tmp_path: Path, factory: str) -> None:
    backwards = np.arange(COUNT)[::-1].copy()
    check(made_by_another(tmp_path, factory, backwards), np.ascontiguousarray(CORPUS_ND[::-1]))
    with pytest.raises(ConfigurationError, match="of 64 sampled passages"):
        check(made_by_another(tmp_path, factory, backwards))


def test_a_few_passages_that_were_cut_elsewhere_are_no_reason_to_refuse(tmp_path: Path) -> None:
    file = made_by_another(tmp_path, "Flat")
    noisy_ND = CORPUS_ND.copy()
    noisy_ND[::20] = vectors(COUNT // 20, 16, 5)  # one of twenty
    check(file, noisy_ND)
    noisy_ND[::3] = vectors(COUNT // 3, 16, 6)
    with pytest.raises(ConfigurationError, match="sampled passages"):
        check(file, noisy_ND)


def test_half_precision_agrees_and_vectors_that_are_no_numbers_do_not(tmp_path: Path) -> None:
    check(made_by_another(tmp_path, "Flat", corpus_ND=CORPUS_ND.astype(np.float16).astype(np.float32)))
    broken_ND = CORPUS_ND.copy()
    broken_ND[:] = np.nan
    with pytest.raises(ConfigurationError, match="undefined numbers"):
        check(made_by_another(tmp_path, "Flat", corpus_ND=broken_ND))
