"""Grids of real numbers: low + k × step, in decimal arithmetic, so that 0.1 × 3 is 0.3 as people write it."""

from __future__ import annotations

import math
import sys
from decimal import Decimal

# How far from a whole number of steps a value may be: what people compute from decimals is off by some bits.
ON_GRID = 1e-8


def _off_by(count: float) -> float:
    """How far from a whole number a quotient of this size may be by rounding alone."""
    return ON_GRID + 4 * sys.float_info.epsilon * abs(count)


def grid_size(low: float, high: float, step: float) -> int:
    count = (high - low) / step
    return math.floor(count + min(_off_by(count), 0.25)) + 1


def grid_index(low: float, step: float, value: float) -> int | None:
    """How many steps above low the value lies; None where it lies on no point, give or take the rounding of sums."""
    count = (value - low) / step
    if not math.isfinite(count):
        return None
    largest = max(abs(low), abs(value)) / step
    return round(count) if abs(count - round(count)) <= min(_off_by(largest), 0.25) else None


def grid_point(low: float, step: float, index: int) -> float:
    return float(Decimal(repr(low)) + index * Decimal(repr(step)))


def is_too_fine(low: float, high: float, step: float) -> bool:
    """Whether a double cannot tell neighbouring points apart with some bits to spare."""
    return step < 8 * math.ulp(max(abs(low), abs(high)))
