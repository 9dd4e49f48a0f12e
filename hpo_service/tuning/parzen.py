"""Parzen estimators as TPE mixes them: a kernel for each trial and a broad one for the prior, over several axes.

The same mixtures as Optuna 5's (bandwidths from the neighbours, truncated to the range, choices by share), written so
that a draw takes few array operations: every axis is scaled to [0, 1], where the logarithm of a product of normal
kernels is a polynomial in the candidate, so that all kernels at all candidates are one product of matrices.

Arrays: N kernels of a mixture (the prior is the last one), D numeric axes, B candidates. A trial's places are a column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hpo_service.domain.search_space import Value
from hpo_service.tuning.axes import Axis, Choices, Continuous, Stepped, Whole

Floats = NDArray[np.float64]

_TINY = 1e-300
# An axis of at least so many cells counts as continuous: the narrowest kernel then spans ten of them, and its density
# in the middle of one is as good as its mass in it.
_SMOOTH = 1_000
# Up to so many axes a product of kernels stays within single precision, whatever their widths: each adds at most a
# factor of 80.
_FEW = 16


@dataclass(frozen=True)
class Coordinate:
    """An axis on the scale that kernels live on: [0, 1] from end to end, or the place among the choices.

    low, span   the lower end and the extent, in logarithms where it is logarithmic; of whole numbers half a step out
    cells       how many values it has; 0 where it counts as continuous
    """

    axis: Axis
    low: float
    span: float
    log: bool
    cells: int

    @classmethod
    def of(cls, axis: Axis) -> Coordinate:
        if isinstance(axis, Choices):
            return cls(axis, 0, 1, False, axis.size)
        if isinstance(axis, Continuous):
            low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
            return cls(axis, low, high - low, axis.log, 0)
        if isinstance(axis, Whole) and axis.log:
            low, second, high = (math.log(axis.low + steps * axis.step) for steps in (-0.5, 0.5, axis.size - 0.5))
            fine = second - low <= (high - low) / _SMOOTH
            return cls(axis, low, high - low, True, 0 if fine else axis.size)
        assert isinstance(axis, Whole | Stepped)
        first, step = (axis.low, axis.step) if isinstance(axis, Whole) else (0, 1)
        low, span = first - step / 2, step * axis.size
        return cls(axis, low, span, False, 0 if axis.size >= _SMOOTH else axis.size)

    @property
    def is_choice(self) -> bool:
        return isinstance(self.axis, Choices)

    def place(self, number: Any) -> float:
        """Where a trial's number lies."""
        if isinstance(self.axis, Choices):
            return self.axis.numbers.index(number)
        return ((math.log(number) if self.log else number) - self.low) / self.span

    def value(self, place: float) -> Value:
        if isinstance(self.axis, Choices):
            return self.axis.point(int(place))
        point = self.low + place * self.span
        return self.axis.nearest(math.exp(point) if self.log else point)

    def snapped(self, places: Floats) -> Floats:
        """The middles of the cells that these places lie in."""
        if not self.log:
            return (np.minimum(np.floor(places * self.cells), self.cells - 1) + 0.5) / self.cells
        assert isinstance(self.axis, Whole)
        steps = np.round((np.exp(self.low + places * self.span) - self.axis.low) / self.axis.step)
        return self._places(np.minimum(np.maximum(steps, 0), self.cells - 1))

    @cached_property
    def all_middles(self) -> Floats:
        """Of the cells, from below."""
        steps = np.arange(self.cells, dtype=np.float64)
        return self._places(steps) if self.log else (steps + 0.5) / self.cells

    def edges(self, middles: Floats) -> tuple[Floats, Floats]:
        """Where the cells with these middles begin and end."""
        if not self.log:
            return middles - 0.5 / self.cells, middles + 0.5 / self.cells
        assert isinstance(self.axis, Whole)
        steps = (np.exp(self.low + middles * self.span) - self.axis.low) / self.axis.step
        return self._places(steps - 0.5), self._places(steps + 0.5)

    def _places(self, steps: Floats) -> Floats:
        """Of whole numbers on a logarithmic axis, so many steps from its lower end."""
        assert isinstance(self.axis, Whole)
        return (np.log(self.axis.low + steps * self.axis.step) - self.low) / self.span


class Coordinates:
    """Some axes together: first the continuous ones, then those with cells, then the choices.

    rows   where each lies among all the axes of the round
    """

    def __init__(self, axes: Sequence[Coordinate], rows: Sequence[int]) -> None:
        order = sorted(range(len(axes)), key=lambda k: (axes[k].is_choice, axes[k].cells > 0))
        self.each = [axes[k] for k in order]
        self.rows = np.array([rows[k] for k in order], dtype=np.intp)
        self.numeric = sum(not axis.is_choice for axis in axes)
        self.smooth = sum(axis.cells == 0 for axis in axes)

    @property
    def is_wide(self) -> bool:
        return len(self.each) > _FEW

    def features(self, points: Floats) -> Floats:
        """(B, 2 S + 1): what a kernel's logarithm is a polynomial of, of the S continuous axes."""
        S = self.smooth
        features = np.ones((points.shape[1], 2 * S + 1))
        features[:, S : 2 * S] = points[:S].T
        np.square(points[:S].T, out=features[:, :S])
        return features

    def values(self, point: Floats) -> dict[str, Value]:
        return {each.axis.name: each.value(place) for each, place in zip(self.each, point.tolist(), strict=True)}


class Mixture:
    def __init__(self, on: Coordinates, places: Floats, weights: Floats) -> None:
        """places: (D + number of choice axes, N - 1), by age; weights: (N - 1,), where the prior's is 1."""
        self._on = on
        D, S, N = on.numeric, on.smooth, places.shape[1] + 1
        shares = np.empty(N)
        shares[:-1], shares[-1] = weights, 1.0
        self._shares = shares / shares.sum()
        self._choices = places[D:].astype(np.intp)
        self._centres = centres = np.empty((D, N))
        self._widths = widths = np.empty((D, N))
        centres[:, :-1], centres[:, -1] = places[:D], 0.5
        widths[:, :-1], widths[:, -1] = _bandwidths(centres[:, :-1]), 1.0
        precision = 1 / widths
        self._from = ndtr(centres * -precision)
        self._mass = ndtr((1 - centres) * precision) - self._from
        self._coefficients = coefficients = np.empty((2 * S + 1, N))
        squared = precision[:S] * precision[:S]
        slopes = np.multiply(centres[:S], squared, out=coefficients[S : 2 * S])
        np.multiply(squared, -0.5, out=coefficients[:S])
        scale = self._mass.copy()
        scale[:S] *= widths[:S]
        coefficients[-1] = -np.log(scale).sum(axis=0) - 0.5 * (centres[:S] * slopes).sum(axis=0)

    def sample(self, uniform: Floats) -> Floats:
        """(D + number of choice axes, B): candidates, each from one kernel; uniform (1 + D + choice axes, B)."""
        on, D = self._on, self._on.numeric
        kernel = np.searchsorted(self._cumulated, uniform[0], side="right")
        points = uniform[1:].copy()
        if D:
            start, mass, centre, width = self._of_each[:, :, kernel]
            places = centre + width * ndtri(start + points[:D] * mass)
            np.minimum(np.maximum(places, 0.0), 1.0, out=points[:D])
            for d in range(on.smooth, D):
                points[d] = on.each[d].snapped(points[d])
        for c, each in enumerate(on.each[D:]):
            # The kernel's own choice with its share; with the rest, and from the prior, any.
            own = np.where(kernel < len(self._shares) - 1, self._own_share(each.cells), 0.0)
            mine = np.append(self._choices[c], 0)[kernel]
            any_of_them = np.floor((points[D + c] - own) / (1 - own) * each.cells)
            points[D + c] = np.where(points[D + c] < own, mine, any_of_them)
        return points

    @cached_property
    def _cumulated(self) -> Floats:
        return np.cumsum(self._shares)[:-1]

    @cached_property
    def _of_each(self) -> Floats:
        return np.stack([self._from, self._mass, self._centres, self._widths])

    def _own_share(self, choices: int) -> float:
        """How much of a trial's kernel stays at its own choice; the rest is spread over all of them."""
        return 1 / (1 + choices / len(self._shares))

    def log_density(self, points: Floats, features: Floats) -> Floats:
        """(B,): the logarithm of the density, up to what two mixtures on the same axes share."""
        on, D = self._on, self._on.numeric
        total = features @ self._coefficients
        for d in range(on.smooth, D):
            total += self._log_masses(d, points[d])
        for c, each in enumerate(on.each[D:]):
            total += self._log_shares(c, each.cells)[points[D + c].astype(np.intp)]
        shift = total.max(axis=1) if on.is_wide else np.zeros(1)
        if on.is_wide:
            total -= shift[:, None]
        density: Floats = np.log(np.exp(total.astype(np.float32)) @ self._shares.astype(np.float32)) + shift
        return density

    def _log_masses(self, d: int, middles: Floats) -> Floats:
        """(B, N): of the cells, in proportion to their extent."""
        of, centres, precision = self._on.each[d], self._centres[d], 1 / self._widths[d]
        few = of.cells < len(middles)
        cells = of.all_middles if few else middles
        low, high = of.edges(cells)
        inside = ndtr((high[:, None] - centres) * precision) - ndtr((low[:, None] - centres) * precision)
        logs: Floats = np.log(np.maximum(inside, _TINY) / (high - low)[:, None])
        return logs[np.searchsorted(cells, middles - 1e-9)] if few else logs

    def _log_shares(self, c: int, choices: int) -> Floats:
        """(number of choices, N): in proportion to what chance would give each."""
        own = self._own_share(choices)
        logs = np.full((choices, len(self._shares)), math.log1p(-own))
        logs[self._choices[c], np.arange(self._choices.shape[1])] = math.log1p(-own + own * choices)
        logs[:, -1] = 0.0
        return logs


def weights_by_age(standing: Floats) -> Floats:
    """Of trials by age the latest 25 count in full, the older ones the less the older they are.

    standing: how many trials each stands for.
    """
    so_far = np.cumsum(standing)
    count = so_far[-1] if len(so_far) else 0.0
    if count <= 25:
        return standing
    slope = (1 - 1 / count) / max(count - 26, 1)
    weights: Floats = np.minimum((so_far - standing) * slope + 1 / count, 1.0) * standing
    return weights


def _bandwidths(centres: Floats) -> Floats:
    """(D, N - 1): the distance to the further neighbour, within bounds; a lone trial's neighbours are the ends."""
    D, count = centres.shape
    if count == 0 or D == 0:
        return centres
    if count == 1:
        return np.maximum(centres, 1 - centres)
    order = centres.argsort(axis=1, kind="stable")
    rows = np.arange(D)[:, None]
    ranked = centres[rows, order]
    gaps = ranked[:, 1:] - ranked[:, :-1]
    widths = np.empty_like(centres)
    np.maximum(gaps[:, 1:], gaps[:, :-1], out=widths[:, 1:-1])
    widths[:, 0], widths[:, -1] = gaps[:, 0], gaps[:, -1]
    result = np.empty_like(centres)
    result[rows, order] = np.maximum(widths, 1 / min(100.0, 2.0 + count))
    return result
