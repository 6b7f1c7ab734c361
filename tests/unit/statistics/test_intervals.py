"""Confidence intervals have their nominal coverage and are the same for the same seed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.statistics.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_proportion,
    normal_mean,
    quantile_estimate,
    resample_means,
    wilson_interval,
)


def test_no_value_gives_no_estimate() -> None:
    for estimate in (bootstrap_mean([]), bootstrap_proportion([]), quantile_estimate([], 0.5), normal_mean([])):
        assert estimate.count == 0
        assert math.isnan(estimate.mean)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(5).normal(size=50)
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(values, seed=7)
    assert bootstrap_mean(values, seed=7) != bootstrap_mean(values, seed=8)


@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_an_interval_holds_its_mean_and_lies_within_the_values(values: list[float]) -> None:
    estimate = bootstrap_mean(values)
    assert min(values) - 1e-12 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.high <= max(values) + 1e-12


def test_wilson_of_ten_right_of_ten() -> None:
    # z = 1.96: center (1 + z²/20) / (1 + z²/10), and the interval reaches 1; low = 10 / (10 + z²) = 0.7225
    estimate = wilson_interval(np.ones(10))
    assert estimate.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert estimate.high == pytest.approx(1.0)


def test_all_equal_proportions_still_have_a_width_but_equal_counts_do_not() -> None:
    assert bootstrap_proportion([1.0] * 20).low < 1.0
    assert bootstrap_proportion([0.0] * 20).high > 0.0
    assert bootstrap_mean([1.0] * 20).low == 1.0


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_bootstrap_intervals_cover_the_true_proportion_about_95_times_of_100(share: float) -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        estimate = bootstrap_proportion((generator.random(120) < share).astype(float))
        covered += estimate.low <= share <= estimate.high
    # the count is binomial(300, about .94): five standard deviations are 0.07
    assert 0.87 <= covered / 300 <= 0.99


def test_large_samples_are_resampled_in_parts_with_the_same_statistics() -> None:
    values = np.random.default_rng(3).exponential(size=20_000)
    estimate = bootstrap_mean(values)
    standard_error = values.std() / math.sqrt(values.size)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_a_quantile_has_an_interval() -> None:
    values = np.arange(1, 102, dtype=float)
    estimate = quantile_estimate(values, 0.5)
    # of 101 values, those below the median are binomial: 95 % lie in 41..60, so the ranks are 41 and 61
    assert (estimate.mean, estimate.low, estimate.high) == (51, 41, 61)
    assert quantile_estimate([3.0], 0.95) == Estimate(3.0, 3.0, 3.0, 1)


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_quantile_intervals_cover_the_true_quantile(quantile: float) -> None:
    generator = np.random.default_rng(4)
    true = -math.log(1 - quantile)  # of the exponential distribution
    estimates = [quantile_estimate(generator.exponential(size=150), quantile) for _ in range(300)]
    # nominal .95: of 300 intervals, .92 is 2.4 standard deviations lower
    assert sum(estimate.low <= true <= estimate.high for estimate in estimates) >= 0.92 * 300


def test_a_sample_of_few_values_is_resampled_with_the_same_statistics() -> None:
    values = np.repeat([0.0, 1.0, 3.0], [50, 30, 20])
    means = resample_means(values, seed=1, resamples=4000)
    # over 4000 resamples the standard error of the mean is .0018, the relative one of the deviation .011
    assert means.mean() == pytest.approx(0.9, abs=0.01)
    assert means.std() == pytest.approx(values.std() / 10, rel=0.05)


def test_the_normal_interval_of_one_value_is_unbounded() -> None:
    assert normal_mean([0.4]).high == math.inf
