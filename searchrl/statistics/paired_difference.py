"""Compares two methods or policies on the same questions: paired bootstrap, sign-flip test, Holm's correction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from searchrl.statistics.intervals import LEVEL, MAX_ELEMENTS, Values, resample_means

FLIPS = 10_000
"""The smallest p-value is 1 in 10,001; one near 0.05 has a standard error of 0.002."""
ROUNDING = 1e-12
"""Differences of measures in 0..1 that are equal but for their floating-point rounding, of about 1e-16."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """``first`` minus ``second`` over the questions both have.

    Attributes:
        count: questions in common; the only ones used.
        only_first, only_second: questions that one of them lacks, and that are therefore left out.
        wins, losses: questions where first is above, below second.
        low, high: 95 % interval of the difference (paired bootstrap).
        p_value: two-sided, of "the two methods are exchangeable".
    """

    count: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p_value: float


def paired_difference(first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0) -> PairedDifference:
    """Compare two methods by question id; questions that only one of them has are left out and counted."""
    # Sorted, because the order of a set of strings differs between processes, and with it the seeded draws.
    common = sorted(first.keys() & second.keys())
    only_first, only_second = len(first) - len(common), len(second) - len(common)
    if not common:
        return PairedDifference(0, only_first, only_second, math.nan, math.nan, math.nan, 0, 0, math.nan)
    differences = np.array([first[name] - second[name] for name in common], dtype=np.float64)
    tail = 100 * (1 - LEVEL) / 2
    # Resampling questions, and not each method by itself, keeps what the two have in common: a question that is hard
    # for both.
    low, high = np.percentile(resample_means(differences, seed=seed), [tail, 100 - tail])
    return PairedDifference(
        count=len(common),
        only_first=only_first,
        only_second=only_second,
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        p_value=sign_flip_p_value(differences, seed=seed),
    )


def sign_flip_p_value(differences: Values, *, seed: int = 0) -> float:
    """Two-sided permutation test: under the null hypothesis every difference could as well have the other sign.

    If all nonzero differences have one size (right or wrong answers), the test is the exact binomial one on wins and
    losses (McNemar). Otherwise ``FLIPS`` random sign patterns are drawn; the observed pattern counts as one of them,
    so that the p-value is never 0.
    """
    nonzero = differences[differences != 0]
    if nonzero.size == 0:
        return 1.0
    sizes = np.abs(nonzero)
    # 9 wins and 2 losses: p = 2 * P(at most 2 of 11 coins) = 0.065.
    if float(sizes.max() - sizes.min()) < ROUNDING:
        return _binomial_p_value(int((nonzero > 0).sum()), int(nonzero.size))
    generator = np.random.default_rng(seed)
    # A little less than observed: the same pattern, summed in another order, must count as equally extreme.
    observed = abs(float(nonzero.sum())) - ROUNDING * nonzero.size
    rows_at_once = max(1, MAX_ELEMENTS // nonzero.size)
    as_extreme = 0
    for start in range(0, FLIPS, rows_at_once):
        rows = min(rows_at_once, FLIPS - start)
        signs = generator.integers(0, 2, (rows, nonzero.size), dtype=np.int8) * 2 - 1
        as_extreme += int((np.abs(signs @ nonzero) >= observed).sum())
    return (1 + as_extreme) / (1 + FLIPS)


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction (1979) for several comparisons on the same data; NaN stays NaN and is not counted."""
    order = sorted((p, number) for number, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    # p-values 0.01, 0.03, 0.04 become 0.03 (times 3), 0.06 (times 2) and 0.06: times 1 would be 0.04, and a larger
    # p-value must not end up below a smaller one.
    for rank, (p, number) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[number] = largest
    return adjusted


def _binomial_p_value(successes: int, trials: int) -> float:
    """Two-sided exact test of a fair coin."""
    fewer = min(successes, trials - successes)
    log_half = trials * math.log(0.5)
    tail = math.fsum(
        math.exp(math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + log_half)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)
