"""Parzen estimators as TPE mixes them: a kernel for each trial and a broad one for the prior, over several axes.

The same mixture as Optuna 5's (bandwidths from the neighbours, older trials weigh less, truncated to the range),
written for few kernels: two dozen array operations on doubles, without Optuna's logarithms of tails, since every
kernel's centre lies inside the range.

Arrays: N kernels (the prior is the last one), D numeric axes, C choices, B candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hpo_service.domain.search_space import Value
from hpo_service.tuning.axes import Axis, Choices, Continuous, Stepped, Whole

Floats = NDArray[np.float64]

_TINY = 1e-300


@dataclass(frozen=True)
class Coordinate:
    """An axis on the scale that kernels live on: its logarithm where it is logarithmic, the place of a choice.

    low, high   the ends; of whole numbers half a step further out
    step        0 where it is continuous
    """

    axis: Axis
    low: float
    high: float
    step: float
    log: bool
    choices: int

    @classmethod
    def of(cls, axis: Axis) -> Coordinate:
        if isinstance(axis, Choices):
            return cls(axis, 0, 0, 0, False, axis.size)
        if isinstance(axis, Continuous):
            low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
            return cls(axis, low, high, 0.0, axis.log, 0)
        if isinstance(axis, Whole):
            half = axis.step / 2
            low, high = axis.low - half, axis.point(axis.size - 1) + half
            if axis.log:
                low, high = math.log(low), math.log(high)
            return cls(axis, low, high, axis.step, axis.log, 0)
        assert isinstance(axis, Stepped)
        return cls(axis, -0.5, axis.size - 0.5, 1.0, False, 0)

    def place(self, number: Any) -> float:
        """Where a trial's number lies."""
        if self.choices:
            assert isinstance(self.axis, Choices)
            return self.axis.numbers.index(number)
        return math.log(number) if self.log else float(number)

    def value(self, place: float) -> Value:
        if self.choices:
            return self.axis.point(int(place))
        return self.axis.nearest(math.exp(place) if self.log else place)


class Coordinates:
    """Some axes together: first the numeric ones, then the choices."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        every = [Coordinate.of(axis) for axis in axes]
        self.numeric = [each for each in every if not each.choices]
        self.categorical = [each for each in every if each.choices]
        self.names = [each.axis.name for each in (*self.numeric, *self.categorical)]
        self.low = np.array([each.low for each in self.numeric])
        self.high = np.array([each.high for each in self.numeric])
        self.steps = np.array([each.step for each in self.numeric])
        self.logs = np.array([each.log for each in self.numeric], dtype=bool)
        self.smooth = np.flatnonzero(self.steps == 0)
        self.stepped = np.flatnonzero(self.steps > 0)

    @cached_property
    def _each(self) -> list[Coordinate]:
        return [*self.numeric, *self.categorical]

    def row(self, numbers: dict[str, Any]) -> list[float]:
        return [each.place(numbers[each.axis.name]) for each in self._each]

    def values(self, row: Floats) -> dict[str, Value]:
        return {each.axis.name: each.value(place) for each, place in zip(self._each, row.tolist(), strict=True)}


class Mixture:
    def __init__(self, coordinates: Coordinates, rows: Floats, weights: Floats | None = None) -> None:
        """rows: (N - 1, D + number of categorical axes), the oldest trial first; weights: (N - 1,), by age if None."""
        self._on = coordinates
        count, D = len(rows), len(coordinates.numeric)
        self._kernels = count + 1
        self._cumulated, self._log_weights = _by_age(count) if weights is None else _shares(weights)
        self._choices = rows[:, D:].astype(np.intp)
        if D:
            spans = coordinates.high - coordinates.low
            self._centres = np.concatenate([rows[:, :D], (coordinates.low + spans / 2)[None]])
            self._widths = np.concatenate([_bandwidths(rows[:, :D], coordinates.low, coordinates.high), spans[None]])
            self._from = ndtr((coordinates.low - self._centres) / self._widths)
            self._mass = ndtr((coordinates.high - self._centres) / self._widths) - self._from

    def sample(self, random: np.random.Generator, count: int) -> Floats:
        """(B, D + number of categorical axes): candidates, each from one kernel."""
        on, D = self._on, len(self._on.numeric)
        uniform = random.random((2 + len(on.categorical), count, max(D, 1)))
        kernel = np.minimum(np.searchsorted(self._cumulated, uniform[0, :, 0]), self._kernels - 1)
        drawn = np.empty((count, D + len(on.categorical)))
        if D:
            quantile = self._from[kernel] + uniform[1] * self._mass[kernel]
            points = self._centres[kernel] + self._widths[kernel] * ndtri(quantile)
            points = np.minimum(np.maximum(points, on.low), on.high)
            for d in on.stepped:
                points[:, d] = _on_the_grid(points[:, d], on.numeric[d])
            drawn[:, :D] = points
        for c, each in enumerate(on.categorical):
            share = uniform[2 + c, :, 0]
            own = self._own_share(each.choices)
            other = np.minimum((random.random(count) * each.choices).astype(np.intp), each.choices - 1)
            mine = np.append(self._choices[:, c], 0)[kernel]
            drawn[:, D + c] = np.where((kernel < self._kernels - 1) & (share < own), mine, other)
        return drawn

    def _own_share(self, choices: int) -> float:
        """How much of a trial's kernel stays at its own choice; the rest is spread over all of them."""
        return 1 / (1 + choices / self._kernels)

    def log_density(self, points: Floats) -> Floats:
        """(B,): the logarithm of the density, up to what two mixtures on the same axes share."""
        on, D = self._on, len(self._on.numeric)
        if on.smooth.size:
            centres, widths = self._centres[:, on.smooth], self._widths[:, on.smooth]
            away = (points[:, None, on.smooth] - centres) / widths
            total = -0.5 * np.einsum("bnd,bnd->bn", away, away)
            total += self._log_weights - np.log(widths * self._mass[:, on.smooth]).sum(axis=1)
        else:
            total = np.tile(self._log_weights, (len(points), 1))
        for d in on.stepped:
            low, high = _edges(points[:, d], on.numeric[d])
            centres, widths = self._centres[:, d], self._widths[:, d]
            inside = ndtr((high[:, None] - centres) / widths) - ndtr((low[:, None] - centres) / widths)
            total += np.log(np.maximum(inside / self._mass[:, d], _TINY))
        for c, each in enumerate(on.categorical):
            own = self._own_share(each.choices)
            rest = (1 - own) / each.choices
            same = points[:, D + c, None] == self._choices[:, c]
            total[:, :-1] += np.log(rest + own * same)
            total[:, -1] -= math.log(each.choices)
        top = total.max(axis=1)
        density: Floats = np.log(np.exp(total - top[:, None]).sum(axis=1)) + top
        return density


@lru_cache(maxsize=1024)
def _by_age(count: int) -> tuple[Floats, Floats]:
    return _shares(weights_by_age(np.arange(count), count))


def weights_by_age(ranks: NDArray[np.int64], count: int) -> Floats:
    """Of `count` trials the latest 25 count in full, the older ones the less the older they are; rank 0: the oldest."""
    weights: Floats = np.minimum(np.maximum(ranks / max(count - 25, 1), 1 / max(count, 1)), 1.0)
    return weights


def _shares(weights: Floats) -> tuple[Floats, Floats]:
    """The kernels' shares of 1, summed up, and their logarithms; the prior counts as one trial."""
    shares = np.append(weights, 1.0)
    shares /= shares.sum()
    return np.cumsum(shares), np.log(shares)


def _bandwidths(centres: Floats, low: Floats, high: Floats) -> Floats:
    """(N - 1, D): the distance to the further neighbour, within bounds; a lone trial's neighbours are the ends."""
    count = len(centres)
    if count == 0:
        return centres
    order = centres.argsort(axis=0), np.arange(centres.shape[1])
    ranked = centres[order]
    gaps = ranked[1:] - ranked[:-1]
    widths = np.empty_like(centres)
    if count == 1:
        widths[0] = np.maximum(ranked[0] - low, high - ranked[0])
    else:
        widths[1:-1] = np.maximum(gaps[:-1], gaps[1:])
        widths[0], widths[-1] = gaps[0], gaps[-1]
    span = high - low
    result = np.empty_like(centres)
    result[order] = np.minimum(np.maximum(widths, span / min(100.0, 2.0 + count)), span)
    return result


def _on_the_grid(places: Floats, of: Coordinate) -> Floats:
    """The nearest values, where the axis has steps."""
    low, high = (math.exp(of.low), math.exp(of.high)) if of.log else (of.low, of.high)
    first, last = low + of.step / 2, high - of.step / 2
    values = np.exp(places) if of.log else places
    snapped = np.clip(first + np.round((values - first) / of.step) * of.step, first, last)
    result: Floats = np.log(snapped) if of.log else snapped
    return result


def _edges(places: Floats, of: Coordinate) -> tuple[Floats, Floats]:
    """Half a step below and above."""
    if not of.log:
        return places - of.step / 2, places + of.step / 2
    values = np.exp(places)
    return np.log(values - of.step / 2), np.log(values + of.step / 2)
