"""Means of a few measured values, and the intervals in which the true ones lie (Student, 1908)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

COVERED = 0.95


def mean(values: Sequence[float]) -> float:
    """The mean; finite for finite values, and 0 where there are infinities of both signs."""
    if math.inf in values and -math.inf in values:
        return 0.0
    return sum(value / len(values) for value in values)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the true mean of normally distributed values; infinite for fewer than two."""
    count = len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return -math.inf, math.inf
    middle, half = mean(values), math.sqrt(variance(values) / count) * quantile(count - 1)
    return middle - half, middle + half


def variance(values: Sequence[float]) -> float:
    """The sample variance of at least two values; infinite where the squares are."""
    middle = mean(values)
    off = [value - middle for value in values]
    return sum(each * each for each in off) / (len(values) - 1)


def difference(a: float, b: float) -> float:
    """a − b; of two equal infinities 0."""
    return 0.0 if a == b else a - b


@lru_cache(maxsize=1024)
def quantile(degrees: int, covered: float = COVERED) -> float:
    """The t for which Student's distribution with these degrees of freedom has this share between -t and t."""
    low, high = 0.0, 1.0
    while between(high, degrees) < covered:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if between(middle, degrees) < covered else (low, middle)
    return high


def between(t: float, degrees: int) -> float:
    """How much of Student's distribution lies between -t and t (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
