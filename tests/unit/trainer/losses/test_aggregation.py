"""Reductions of token losses, each named by its formula and compared with values computed manually.

A rollout of several rows counts once, padding rows change nothing, and constants come from the settings.
"""

import pytest

from services.trainer.losses.aggregation import Denominators, RowCount, row_coefficient

# A 2 x 3 toy batch: row 0 has 3 trainable tokens with losses 1, 2, 3; row 1 has 1 with loss 10. Two prompts.
SUMS = [6.0, 10.0]
ROWS = [RowCount(0, (0, 0), 3), RowCount(1, (1, 0), 1)]


def total(rows, sums, aggregation, constant=None) -> float:
    denominators = Denominators.count(rows)
    return sum(row_coefficient(r, denominators, aggregation, constant) * s for r, s in zip(rows, sums, strict=True))


@pytest.mark.parametrize(
    ("aggregation", "constant", "expected"),
    [
        ("token_mean", None, 16 / 4),
        ("seq_mean_token_mean", None, (6 / 3 + 10 / 1) / 2),
        ("seq_mean_token_sum", None, (6 + 10) / 2),
        ("seq_sum_const", 4.0, (6 / 4 + 10 / 4) / 2),
        ("prompt_mean", None, (6 / 3 + 10 / 1) / 2),
    ],
)
def test_every_reduction_equals_its_formula_on_a_toy_batch(aggregation, constant, expected) -> None:
    assert total(ROWS, SUMS, aggregation, constant) == pytest.approx(expected)


def test_prompt_mean_averages_tokens_within_a_prompt_first() -> None:
    rows = [RowCount(0, (0, 0), 3), RowCount(0, (0, 1), 1), RowCount(1, (1, 0), 2)]
    # prompt 0: (6 + 10) / 4 tokens = 4; prompt 1: 4 / 2 = 2; mean 3
    assert total(rows, [6.0, 10.0, 4.0], "prompt_mean") == pytest.approx(3.0)


def test_a_rollout_split_into_three_rows_counts_once() -> None:
    full = [RowCount(0, (0, 0), 6), RowCount(1, (1, 0), 2)]
    parts = [RowCount(0, (0, 0), 2), RowCount(0, (0, 0), 3), RowCount(0, (0, 0), 1), RowCount(1, (1, 0), 2)]
    for aggregation in ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_sum_const", "prompt_mean"):
        split = total(parts, [1.0, 3.0, 2.0, 5.0], aggregation, 8.0)
        assert split == pytest.approx(total(full, [6.0, 5.0], aggregation, 8.0)), aggregation


def test_empty_and_weightless_rows_change_no_reduction() -> None:
    padded = [*ROWS, RowCount(7, (7, 0), 0), RowCount(8, (8, 0), 5, weight=0.0)]
    for aggregation in ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_sum_const", "prompt_mean"):
        expected = total(ROWS, SUMS, aggregation, 8.0)
        assert total(padded, [*SUMS, 0.0, 99.0], aggregation, 8.0) == pytest.approx(expected), aggregation


def test_a_weight_scales_its_row_alone() -> None:
    rows = [RowCount(0, (0, 0), 3, weight=0.5), ROWS[1]]
    assert total(rows, SUMS, "token_mean") == pytest.approx((3 + 10) / 4)


def test_seq_sum_const_without_a_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a constant"):
        total(ROWS, SUMS, "seq_sum_const")
