"""The Triton kernel of ``group_maxima``: one program per group multiplies its rows with all queries on tensor cores."""

import triton  # pyright: ignore[reportMissingImports] - only beside torch for GPUs
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def group_maxima_kernel(
    vectors, high, low, excluded, maxima, groups,
    D: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, HAS_EXCLUDED: tl.constexpr,
):  # fmt: skip
    """Write the largest product of each query with the ROWS vectors of a group to maxima [T, groups].

    A query is the sum of its high and its low part, both [T, D]. STEP dimensions are multiplied at a time, with sums
    in float32.
    """
    group = tl.program_id(0).to(tl.int64)  # rows x dimensions exceeds 32 bits
    rows = group * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, STEP)
    numbers = tl.arange(0, T)
    scores = tl.zeros((ROWS, T), tl.float32)
    for start in range(0, D, STEP):
        inside = start + columns < D
        rows_of = tl.load(vectors + rows[:, None] * D + start + columns[None, :], mask=inside[None, :], other=0.0)
        places = numbers[None, :] * D + start + columns[:, None]
        scores = tl.dot(rows_of, tl.load(high + places, mask=inside[:, None], other=0.0), scores)
        scores = tl.dot(rows_of, tl.load(low + places, mask=inside[:, None], other=0.0), scores)
    if HAS_EXCLUDED:
        hidden = tl.load(excluded + rows)
        scores = tl.where(hidden[:, None], float("-inf"), scores)
    tl.store(maxima + numbers * groups + group, tl.max(scores, 0))
