"""Confidence intervals of means and quantiles, by a seeded bootstrap and by order statistics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 2000
"""Leaves 50 resampled means beyond each bound of a 95 % interval; more are slower and move the bounds less."""
LEVEL = 0.95  # the usual level; ``NORMAL_QUANTILE`` and the texts of the report belong to it
MAX_ELEMENTS = 4_000_000
"""Bounds the memory of one round of resampling or of drawing signs: 32 MB of 64-bit values, and as much of indices."""
MAX_DISTINCT_VALUES = 12
"""Largest number of distinct values that are drawn as counts: shares have two, and documents or searches about ten.
With as many distinct values as questions, drawing counts would save nothing.
"""
NORMAL_QUANTILE = 1.959964  # of 97.5 %, for LEVEL


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of ``count`` questions with its 95 % interval; all NaN if there is no question."""

    mean: float
    low: float
    high: float
    count: int


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, 0)


def bootstrap_mean(values: Sequence[float] | Values, *, seed: int = 0) -> Estimate:
    """Mean with a percentile bootstrap interval (Efron 1979)."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return NO_ESTIMATE
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resample_means(sample, seed=seed), [tail, 100 - tail])
    return Estimate(float(sample.mean()), float(low), float(high), int(sample.size))


def bootstrap_proportion(values: Sequence[float] | Values, *, seed: int = 0) -> Estimate:
    """Like ``bootstrap_mean``, for values in 0..1.

    Resampling equal values gives an interval of no width, so an accuracy of exactly 0 or 1 gets Wilson's interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    # 0 of 100 right: Wilson's interval is 0 to 3.7 %, the bootstrap's 0 to 0 %.
    if sample.size and sample[0] in (0.0, 1.0) and np.all(sample == sample[0]):
        return wilson_interval(sample)
    return bootstrap_mean(sample, seed=seed)


def quantile_estimate(values: Sequence[float] | Values, quantile: float) -> Estimate:
    """A quantile (such as 0.95) with the interval between two order statistics; ``mean`` holds the quantile.

    The number of values below the true quantile is binomial, whatever the distribution (Conover, Practical
    Nonparametric Statistics, 3.2), so the ranks of the interval need no resampling.
    """
    sample = np.sort(np.asarray(values, dtype=np.float64))
    count = int(sample.size)
    if count == 0:
        return NO_ESTIMATE
    # B values of n lie below the true quantile, B ~ Binomial(n, quantile). For the median of 100 values:
    #
    #   P(B <= 39) = 0.018 < 0.025 <= P(B <= 40) = 0.028    lower bound: the 40th smallest value, index 39
    #   P(B <= 59) = 0.972 < 0.975 <= P(B <= 60) = 0.982    upper bound: the 61st smallest value, index 60
    #
    # The median lies below the 40th value only if at most 39 values are smaller than it. The interval is a little wider
    # than 95 %, since ranks are whole numbers.
    tail = (1 - LEVEL) / 2
    below = np.cumsum(np.exp(_binomial_log_probabilities(count, quantile)))
    low = max(0, int(np.searchsorted(below, tail)) - 1)
    high = min(count - 1, int(np.searchsorted(below, 1 - tail)))
    return Estimate(float(np.quantile(sample, quantile)), float(sample[low]), float(sample[high]), count)


def normal_mean(values: Sequence[float] | Values) -> Estimate:
    """Mean with the normal approximation, which is cheap enough for the progress of a running run."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return NO_ESTIMATE
    mean = float(sample.mean())
    # Infinite for a single value, whose spread is unknown.
    half = NORMAL_QUANTILE * float(sample.std(ddof=1)) / math.sqrt(sample.size) if sample.size > 1 else math.inf
    return Estimate(mean, mean - half, mean + half, int(sample.size))


def wilson_interval(sample: Values) -> Estimate:
    """Wilson's score interval (1927) of a share, from zeros and ones."""
    count = int(sample.size)
    share = float(sample.mean())
    squared = NORMAL_QUANTILE**2
    center = (share + squared / (2 * count)) / (1 + squared / count)
    half = NORMAL_QUANTILE / (1 + squared / count) * math.sqrt(share * (1 - share) / count + squared / (4 * count**2))
    return Estimate(share, max(0.0, center - half), min(1.0, center + half), count)


def resample_means(sample: Values, *, seed: int, resamples: int = RESAMPLES) -> Values:
    """The bootstrap distribution of the mean.

    If the sample has few distinct values (right or wrong, numbers of documents), a resample draws how often each of
    them occurs (multinomial): the same distribution in a fraction of the time.
    """
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(sample, return_counts=True)
    if distinct.size <= MAX_DISTINCT_VALUES:
        return generator.multinomial(sample.size, counts / sample.size, resamples) @ distinct / sample.size
    # 10,000 distinct times in seconds: 400 resamples at a time, five rounds for all 2,000.
    rows_at_once = max(1, MAX_ELEMENTS // sample.size)
    parts: list[Values] = []
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        parts.append(sample[generator.integers(0, sample.size, (rows, sample.size))].mean(axis=1))
    return np.concatenate(parts)


def _binomial_log_probabilities(trials: int, share: float) -> Values:
    """Logarithms of the probabilities of 0..trials successes."""
    # In logarithms: the number of ways exceeds the largest float (1.8e308) from about 1,030 trials on.
    successes = np.arange(trials + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    ways = log_factorials[trials] - log_factorials - log_factorials[::-1]
    return ways + successes * math.log(share) + (trials - successes) * math.log1p(-share)
