"""Medians, their dispersion, geometric means, and whether two sets of times differ."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

# Of normally distributed values the median absolute deviation times 1.4826 estimates the standard
# deviation, and the median of n of them has 1.2533 / sqrt(n) of that.
_MEDIAN_ERROR = 1.4826 * 1.2533


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def deviation(values: Sequence[float]) -> float:
    """The median absolute deviation from the median."""
    middle = median(values)
    return median([abs(value - middle) for value in values])


def noise(values: Sequence[float]) -> float:
    """The standard error of the median, relative to the median, were the values normal."""
    if len(values) < 2:
        return math.inf
    return _MEDIAN_ERROR * deviation(values) / math.sqrt(len(values)) / median(values)


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values; NaN of none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def difference_by_chance(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of Mann and Whitney's U test (Ann. Math. Stat. 18(1), 1947).

    The probability that two sets from one distribution stand as far from evenly mixed as these.
    Exact up to 20 values each without ties, otherwise by the normal approximation with corrections
    for ties and continuity.
    """
    if not first or not second:
        return math.nan
    merged = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    values = [value for value, _ in merged]
    ties = Counter(values)
    rank_sum, start = 0.0, 0
    while start < len(merged):
        count = ties[values[start]]
        rank = start + (count + 1) / 2
        rank_sum += rank * sum(1 for _, which in merged[start : start + count] if which == 0)
        start += count
    n, m = len(first), len(second)
    u = rank_sum - n * (n + 1) / 2
    distance = abs(u - n * m / 2)
    if len(ties) == n + m and max(n, m) <= 20:
        counts = _arrangements(n, m)
        extreme = sum(c for i, c in enumerate(counts) if abs(i - n * m / 2) >= distance)
        return extreme / sum(counts)
    total = n + m
    tied = sum(count**3 - count for count in ties.values())
    variance = n * m / 12 * (total + 1 - tied / (total * (total - 1)))
    if variance == 0:
        return 1.0
    return math.erfc(max(0.0, distance - 0.5) / math.sqrt(2 * variance))


def least_probability(n: int, m: int) -> float:
    """The p-value where all of n values are above all of m others: no two sets have a smaller."""
    return 2 / math.comb(n + m, n)


def _arrangements(n: int, m: int) -> list[int]:
    """How many orders of n and m values have U = 0, 1, ..., n*m.

    The coefficients of the Gaussian binomial: the product of (1 - x^(m+i)) / (1 - x^i), i = 1..n.
    """
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for power in range(n * m, m + i - 1, -1):
            counts[power] -= counts[power - m - i]
        for power in range(i, n * m + 1):
            counts[power] += counts[power - i]
    return counts
