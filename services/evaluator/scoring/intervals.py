"""How sure is a mean? Seeded bootstrap intervals, vectorised."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
ELEMENTS_AT_ONCE = 4_000_000
NORMAL_QUANTILE = 1.959964  # of 97.5 %, for LEVEL


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of ``count`` questions with its 95 % interval; all NaN where there is no question."""

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
    low, high = _percentiles(sample, lambda resamples: resamples.mean(axis=1), seed)
    return Estimate(float(sample.mean()), low, high, int(sample.size))


def bootstrap_share(values: Sequence[float] | Values, *, seed: int = 0) -> Estimate:
    """Like ``bootstrap_mean``, for values in 0..1.

    Resampling equal values gives an interval of no width, so an accuracy of exactly 0 or 1 gets Wilson's interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size and sample[0] in (0.0, 1.0) and np.all(sample == sample[0]):
        return wilson(sample)
    return bootstrap_mean(sample, seed=seed)


def bootstrap_quantile(values: Sequence[float] | Values, quantile: float, *, seed: int = 0) -> Estimate:
    """A quantile (0.95, say) with a percentile bootstrap interval; ``mean`` holds the quantile."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return NO_ESTIMATE
    low, high = _percentiles(sample, lambda resamples: np.quantile(resamples, quantile, axis=1), seed)
    return Estimate(float(np.quantile(sample, quantile)), low, high, int(sample.size))


def normal_mean(values: Sequence[float] | Values) -> Estimate:
    """Mean with the normal approximation: cheap enough for progress while a run goes on."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return NO_ESTIMATE
    mean = float(sample.mean())
    half = NORMAL_QUANTILE * float(sample.std(ddof=1)) / math.sqrt(sample.size) if sample.size > 1 else math.inf
    return Estimate(mean, mean - half, mean + half, int(sample.size))


def wilson(sample: Values) -> Estimate:
    """Wilson's score interval (1927) of a share, from zeros and ones."""
    count = int(sample.size)
    share = float(sample.mean())
    squared = NORMAL_QUANTILE**2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    half = NORMAL_QUANTILE / (1 + squared / count) * math.sqrt(share * (1 - share) / count + squared / (4 * count**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), count)


def resampled_means(sample: Values, *, seed: int, resamples: int = RESAMPLES) -> Values:
    """The bootstrap distribution of the mean."""
    return _resampled(sample, lambda chunk: chunk.mean(axis=1), seed, resamples)


def _percentiles(sample: Values, statistic: Callable[[Values], Values], seed: int) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(_resampled(sample, statistic, seed, RESAMPLES), [tail, 100 - tail])
    return float(low), float(high)


def _resampled(sample: Values, statistic: Callable[[Values], Values], seed: int, resamples: int) -> Values:
    """``statistic`` of rows of a (resamples, size) matrix, built in parts of bounded memory."""
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, ELEMENTS_AT_ONCE // sample.size)
    parts: list[Values] = []
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        parts.append(statistic(sample[generator.integers(0, sample.size, (rows, sample.size))]))
    return np.concatenate(parts)
