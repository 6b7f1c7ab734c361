"""Computes the largest score of each group of rows: on GPUs in one pass over the vectors, by a Triton kernel."""

import logging
import subprocess
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

GROUP_ROWS = 128
"""Consecutive rows of one group. A scan writes one maximum per query and group, so its memory traffic is that of the
vectors alone; a query's best rows then lie in few groups, whose rows are scored again."""
TILE_QUERIES = 64
"""Queries of one scan: one more costs as much as a second scan (docs/performance.md)."""
MIN_TILE_QUERIES = 16
"""Fewest columns of a product on tensor cores."""
_BLOCK_ROWS = 1 << 17
_STEP_DIMENSIONS = 64

Scan = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Returns the largest inner product of each query with the rows of each group, up to a power of two per query.

Takes half-precision vectors [N, D], N a multiple of ``GROUP_ROWS``; float32 queries [Q, D], Q at most ``TILE_QUERIES``;
and a mask [N] of the rows that count for nothing, or None. Returns float32 [Q, N / GROUP_ROWS], -inf for a group in
which no row counts.
"""


def choose_scan(device: torch.device) -> Scan:
    """The fastest scan that works on this device: the kernel, or products of blocks by torch."""
    if device.type == "cpu":
        return scan_blocks
    example = torch.zeros(GROUP_ROWS, _STEP_DIMENSIONS, dtype=torch.float16, device=device)
    try:
        scan_fused(example, example[:1].float(), None)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning(
            "exact search on %s multiplies block by block, which is slower, because Triton cannot "
            "compile its kernel (%s); it needs a C compiler and a writable folder TRITON_CACHE_DIR",
            device,
            error,
        )
        return scan_blocks
    return scan_fused


def scan_blocks(vectors_ND: Tensor, queries_QD: Tensor, excluded_N: Tensor | None) -> Tensor:
    """A scan by torch's products, for CPUs and for GPUs without a compiler."""
    # a product of half-precision matrices on a CPU would round its sums to half precision
    halves = split_queries(queries_QD, vectors_ND.dtype) if vectors_ND.is_cuda else None
    parts = []
    for start in range(0, len(vectors_ND), _BLOCK_ROWS):
        block_BD = vectors_ND[start : start + _BLOCK_ROWS]
        if halves is None:
            scores_QB = queries_QD @ block_BD.float().T
        else:
            high, low = (torch.mm(half_QD, block_BD.T, out_dtype=torch.float32) for half_QD in halves)
            scores_QB = high + low
        if excluded_N is not None:
            scores_QB.masked_fill_(excluded_N[start : start + _BLOCK_ROWS], -torch.inf)
        parts.append(scores_QB.view(len(queries_QD), -1, GROUP_ROWS).amax(2))
    return torch.cat(parts, 1)


def scan_fused(vectors_ND: Tensor, queries_QD: Tensor, excluded_N: Tensor | None) -> Tensor:
    """A scan by the Triton kernel."""
    # Triton is there only beside torch for GPUs.
    from services.retriever.indexes.vectors.maxima_kernel import group_maxima_kernel

    rows, dimensions = vectors_ND.shape
    # one compiled kernel per power of two, not one per batch size
    tile = max(MIN_TILE_QUERIES, 1 << (len(queries_QD) - 1).bit_length())
    padded_TD = torch.zeros(tile, dimensions, device=queries_QD.device)
    padded_TD[: len(queries_QD)] = queries_QD
    high_TD, low_TD = split_queries(padded_TD, vectors_ND.dtype)
    groups = rows // GROUP_ROWS
    maxima_TG = torch.empty(tile, groups, device=vectors_ND.device)
    with torch.cuda.device(vectors_ND.device):  # Triton starts kernels on the current device
        cast(Any, group_maxima_kernel)[(groups,)](
            vectors_ND, high_TD, low_TD, vectors_ND if excluded_N is None else excluded_N, maxima_TG, groups,
            D=dimensions, T=tile, ROWS=GROUP_ROWS, STEP=_STEP_DIMENSIONS, HAS_EXCLUDED=excluded_N is not None,
            num_warps=4, num_stages=3,
        )  # fmt: skip
    return maxima_TG[: len(queries_QD)]


def split_queries(queries_QD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two half-precision parts whose sum has twice the digits, because a rounded query would find other rows.

    The parts are those of a query of at most one, by a power of two, so that every number fits into float16.
    """
    _, exponents_Q1 = torch.frexp(queries_QD.abs().amax(1, keepdim=True))
    scaled_QD = torch.ldexp(queries_QD, -exponents_Q1)
    high_QD = scaled_QD.to(dtype)
    return high_QD, (scaled_QD - high_QD.float()).to(dtype)
