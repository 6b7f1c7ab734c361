"""Exact search from the memory of devices finds what a brute force finds; here the devices are CPUs."""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.retriever.indexes.vectors import gpu_exact, group_maxima
from services.retriever.indexes.vectors.base import DEFAULT_EFFORT, ExactSettings, Unservable
from services.retriever.indexes.vectors.exact import ExactIndex, ExactStorage
from services.retriever.indexes.vectors.gpu_exact import GpuExactIndex
from services.retriever.ranking import RankedRows
from tests.fakes.brute_force import random_integers, rank_all


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 1200), st.integers(1, 40), st.integers(1, 150), st.integers(1, 1300), st.integers(1, 3),
    st.booleans(), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_rows_scores_and_ties_are_those_of_a_brute_force(
    rows: int, dimensions: int, queries: int, top_k: int, devices: int, has_filter: bool, rescore: bool, seed: int
) -> None:
    # Small whole numbers: every sum is exact in every dtype, and equal scores are frequent.
    rng = np.random.default_rng(seed)
    vectors_ND, queries_QD = random_integers(rng, rows, dimensions), random_integers(rng, queries, dimensions)
    allowed = np.flatnonzero(rng.random(rows) < 0.3) if has_filter else None
    index = GpuExactIndex(vectors_ND, ExactSettings(device=",".join(["cpu"] * devices), rescore=rescore))
    assert (len(index), index.dimensions) == (rows, dimensions)
    assert index.search(queries_QD, top_k, allowed) == rank_all(vectors_ND, queries_QD, top_k, allowed)
    assert index.search(queries_QD[:1], 3, None) == rank_all(vectors_ND, queries_QD[:1], 3, None)
    others = np.flatnonzero(rng.random(rows) < 0.5)
    assert index.search(queries_QD[:1], 3, others) == rank_all(vectors_ND, queries_QD[:1], 3, others)


def test_equal_vectors_are_found_in_row_order_far_beyond_the_spare_groups() -> None:
    vectors_ND = np.ones((128 * 80, 4), dtype=np.float32)
    vectors_ND[128 * 20 :: 128] = 2.0
    [found] = GpuExactIndex(vectors_ND, ExactSettings(device="cpu,cpu")).search(np.ones((1, 4), np.float32), 5, None)
    assert found == RankedRows([2560, 2688, 2816, 2944, 3072], [8.0] * 5)


def test_real_vectors_have_the_file_s_scores_with_rescoring_and_rounded_ones_without() -> None:
    rng = np.random.default_rng(3)
    vectors_ND = rng.normal(size=(700, 48)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    queries_QD = rng.normal(size=(9, 48)).astype(np.float32) * 1e6  # far beyond what float16 can hold
    expected = rank_all(vectors_ND, queries_QD, 20, None)
    errors: dict[Literal["float16", "bfloat16"], float] = {"float16": 2**-10, "bfloat16": 2**-7}
    for dtype, error in errors.items():
        exact = GpuExactIndex(vectors_ND, ExactSettings(device="cpu", dtype=dtype, rescore=True))
        rounded = GpuExactIndex(vectors_ND, ExactSettings(device="cpu", dtype=dtype))
        for wanted, found, near in zip(
            expected, exact.search(queries_QD, 20, None), rounded.search(queries_QD, 20, None), strict=True
        ):
            assert found.rows == wanted.rows
            assert np.allclose(found.scores, wanted.scores, rtol=1e-5)
            assert near.scores != found.scores
            assert np.allclose(near.scores, wanted.scores, rtol=error, atol=error * wanted.scores[0])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_vector_without_a_finite_score_is_never_found_and_hides_nothing(broken: float) -> None:
    vectors_ND = random_integers(np.random.default_rng(0), 300, 8)
    vectors_ND[7, 3] = broken
    index = GpuExactIndex(vectors_ND, ExactSettings(device="cpu"))
    [found] = index.search(np.ones((1, 8), np.float32), 300, None)
    assert sorted(found.rows) == [row for row in range(300) if row != 7]


def test_numbers_beyond_float16_are_refused_and_fit_into_bfloat16() -> None:
    vectors_ND = np.full((3, 2), 7e4, dtype=np.float32)
    with pytest.raises(Unservable, match="bfloat16"):
        GpuExactIndex(vectors_ND, ExactSettings(device="cpu"))
    [found] = GpuExactIndex(vectors_ND, ExactSettings(device="cpu", dtype="bfloat16")).search(
        np.ones((1, 2), np.float32), 2, None
    )
    assert found.rows == [0, 1]


def test_vectors_are_copied_block_by_block_and_candidates_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    vectors_ND, queries_QD = random_integers(rng, 1000, 16), random_integers(rng, 20, 16)
    monkeypatch.setattr(gpu_exact, "_COPY_BYTES", 100 * 16 * 4)
    monkeypatch.setattr(gpu_exact, "_RESCORED_BYTES", 1)
    index = GpuExactIndex(vectors_ND, ExactSettings(device="cpu"))
    assert index.search(queries_QD, 10, None) == rank_all(vectors_ND, queries_QD, 10, None)


def test_a_device_that_is_not_there_or_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_ND = np.ones((2, 2), np.float32)
    for device in ("cuda:63", "nonsense", "cpu,"):
        with pytest.raises(Unservable, match="exact search"):
            GpuExactIndex(vectors_ND, ExactSettings(device=device))
    if not torch.cuda.is_available():
        with pytest.raises(Unservable, match="sees no GPU"):
            GpuExactIndex(vectors_ND, ExactSettings(device="cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    with pytest.raises(Unservable, match="FAISS"):
        gpu_exact._check_memory(101, torch.device("cuda", 0))


def test_memory_that_torch_keeps_of_freed_generations_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [100]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 200))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.__setitem__(0, 150))
    gpu_exact._check_memory(150, torch.device("cuda", 0))
    assert free == [150]
    with pytest.raises(Unservable, match="free"):
        gpu_exact._check_memory(151, torch.device("cuda", 0))


def test_a_device_whose_memory_another_process_takes_meanwhile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*size: int, **given: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee the documentation")

    monkeypatch.setattr(torch, "zeros", no_memory)
    with pytest.raises(Unservable, match=r"onto cpu: CUDA out of memory. Tried to allocate 20.00 MiB.$"):
        GpuExactIndex(np.ones((2, 2), np.float32), ExactSettings(device="cpu"))


def test_an_index_of_an_empty_file_and_one_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = GpuExactIndex(np.zeros((0, 4), np.float32), ExactSettings(device="cpu"))
    assert empty.search(np.ones((2, 4), np.float32), 3, None) == [RankedRows([], [])] * 2
    ExactIndex.build(tmp_path, [np.eye(4, dtype=np.float32)])
    opened = ExactStorage().open(tmp_path, 4, DEFAULT_EFFORT, ExactSettings(device="cpu,cpu"))
    assert [found.rows[0] for found in opened.search(np.eye(4, dtype=np.float32), 1, None)] == [0, 1, 2, 3]
    monkeypatch.setitem(sys.modules, "services.retriever.indexes.vectors.gpu_exact", None)
    with pytest.raises(Unservable, match="needs torch"):
        ExactStorage().open(tmp_path, 4, DEFAULT_EFFORT, ExactSettings(device="cuda"))


def test_without_a_compiler_a_gpu_multiplies_block_by_block(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **given: torch.empty(*size, **given).fill_(0))
    monkeypatch.setitem(sys.modules, "services.retriever.indexes.vectors.maxima_kernel", None)
    assert group_maxima.choose_scan(torch.device("cuda", 0)) is group_maxima.scan_blocks
    assert "C compiler" in caplog.text


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 64), st.integers(1, 40), st.floats(1e-30, 1e30), st.sampled_from([torch.float16, torch.bfloat16]))
def test_a_query_in_two_parts_keeps_twice_the_digits(queries: int, dimensions: int, scale: float, dtype) -> None:
    queries_QD = torch.randn(queries, dimensions, generator=torch.Generator().manual_seed(queries)) * scale
    high, low = (part.double() for part in group_maxima.split_queries(queries_QD, dtype))
    assert high.abs().max() <= 1
    largest_Q1 = queries_QD.double().abs().amax(1, keepdim=True)
    scaled = queries_QD.double() / 2.0 ** (largest_Q1.log2().floor() + 1)
    digits = 22 if dtype is torch.float16 else 16
    assert (high + low - scaled).abs().max() <= 2.0**-digits
