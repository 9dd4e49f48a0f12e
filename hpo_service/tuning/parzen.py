"""Parzen estimators as TPE mixes them: a kernel for each trial and a broad one for the prior, over several axes.

The same mixtures as Optuna 5's (bandwidths from the neighbours, truncated to the range, choices by share), written so
that a draw takes few array operations: every axis is scaled to [0, 1], where the logarithm of a product of normal
kernels is a polynomial in the candidate, so that all kernels at all candidates are one product of matrices.

Arrays: N kernels of a mixture (the prior is the first one), D numeric axes, B candidates; a trial is a
column, an axis a row.
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

# An axis of at least so many cells counts as continuous: the narrowest kernel then spans ten of them, and its density
# in the middle of one is as good as its mass in it.
_SMOOTH = 1_000
# Up to so many axes a product of kernels stays within single precision, which is four times as fast: each axis adds at
# most a factor of 80.
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
    def bounds(self) -> Floats:
        """(cells + 1,): where the cells begin and end, from below."""
        steps = np.arange(self.cells + 1, dtype=np.float64) - 0.5
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

        self.precision = np.dtype(np.float32 if len(axes) <= _FEW else np.float64)

    def features(self, points: Floats) -> Floats:
        """(2 S + 1, B): of the S continuous axes what the exponent of a kernel is linear in; see `Mixture`."""
        S = self.smooth
        features = np.empty((2 * S + 1, points.shape[1]))
        halves = np.multiply(points[:S], -0.5, out=features[:S])
        halves *= points[:S]
        features[S : 2 * S] = points[:S]
        features[-1] = -0.5
        return features

    def values(self, point: Floats) -> dict[str, Value]:
        return {each.axis.name: each.value(place) for each, place in zip(self.each, point.tolist(), strict=True)}


class Mixture:
    """A kernel at c of width w, and p = 1 / w: exp(-(x - c)² p² / 2) = exp(-x²/2 · p² + x · c p² - 1/2 · c² p²).

    exponents (2 S + 1, N)   p² and c p² of each continuous axis, and the sum of c² p²: what features are multiplied by
    factors (N,)             the weight of the kernel, over its width and its mass inside the range, on all axes
    """

    def __init__(self, on: Coordinates) -> None:
        self._on = on
        self._reserve(64)

    def _reserve(self, capacity: int) -> None:
        """One set of arrays for all that this is fitted to: to make them takes as long as to fill them."""
        D, S = self._on.numeric, self._on.smooth
        self._capacity = capacity
        self._all_centres, self._all_precisions = np.empty((D, capacity)), np.empty((D, capacity))
        self._all_centres[:, 0], self._all_precisions[:, 0] = 0.5, 1.0
        self._all_weights = np.ones(capacity)
        self._all_ends = np.empty((2, D, capacity))
        self._all_exponents = np.empty((2 * S + 1, capacity))
        self._begin_of_rows = np.arange(1, D * capacity + 1, capacity)[:, None]

    def fit(self, places: Floats, standing: Floats) -> Mixture:
        """places: (D + number of choice axes, N - 1), by age; standing: how many trials each stands for."""
        on = self._on
        D, S, N = on.numeric, on.smooth, places.shape[1] + 1
        if self._capacity < N:
            self._reserve(2 * N)
        self._choices = places[D:].astype(np.intp) if len(places) > D else None
        self._weights = weights = self._all_weights[:N]
        weigh_by_age(standing, weights[1:])
        self._centres = centres = self._all_centres[:, :N]
        centres[:, 1:] = places[:D]
        self._find_precisions(N - 1)
        self._precision = precision = self._all_precisions[:, :N]
        self._exponents = exponents = self._all_exponents[:, :N]
        ends = self._all_ends[:, :, :N]
        begin = np.multiply(centres, precision, out=ends[0])
        np.subtract(precision, begin, out=ends[1])
        p = precision if S == D else precision[:S]
        np.multiply(p, p, out=exponents[:S])
        np.multiply(begin[:S], p, out=exponents[S : 2 * S])
        np.multiply(exponents[S : 2 * S], centres[:S]).sum(axis=0, out=exponents[-1])
        np.negative(begin, out=begin)
        ndtr(ends, out=ends)
        mass = np.subtract(ends[1], begin, out=ends[1])
        self._ends = ends
        self._sampling: tuple[Floats, Floats] | None = None
        factors = weights
        if S:
            factors = factors * (p / mass[:S]).prod(axis=0)
        if S < D:
            factors = factors / mass[S:].prod(axis=0)
        self._factors = factors.astype(on.precision)
        return self

    def _find_precisions(self, count: int) -> None:
        """Of the trials' kernels: 1 over the distance to the further neighbour, within bounds."""
        D = self._on.numeric
        centres, precisions = self._all_centres, self._all_precisions
        if count < 2:
            ends = centres[:, 1 : 1 + count]
            precisions[:, 1 : 1 + count] = 1 / np.maximum(ends, 1 - ends)
            return
        order = centres[:, 1 : 1 + count].argsort(axis=1, kind="stable")
        order += self._begin_of_rows
        ranked = centres.take(order)
        widths = np.empty((D, count))
        gaps = ranked[:, 1:] - ranked[:, :-1]
        np.maximum(gaps[:, 1:], gaps[:, :-1], out=widths[:, 1:-1])
        widths[:, 0], widths[:, -1] = gaps[:, 0], gaps[:, -1]
        np.maximum(widths, 1 / min(100.0, 2.0 + count), out=widths)
        precisions.ravel()[order] = np.divide(1, widths, out=widths)

    def sample(self, uniform: Floats) -> Floats:
        """(D + number of choice axes, B): candidates, each from one kernel; uniform (1 + D + choice axes, B)."""
        on, D = self._on, self._on.numeric
        cumulated, of_each = self._for_sampling()
        kernel = cumulated.searchsorted(uniform[0], side="right")
        points = uniform[1:].copy()
        if D:
            below, mass, width, centre = of_each.take(kernel, axis=2)
            mass *= points[:D]
            mass += below
            width *= ndtri(mass, out=mass)
            np.add(width, centre, out=points[:D])
            for d in range(on.smooth, D):
                points[d] = on.each[d].snapped(points[d])
        for c, each in enumerate(on.each[D:]):
            assert self._choices is not None
            # The kernel's own choice with its share; with the rest, and from the prior, any.
            own = np.where(kernel > 0, self._own_share(each.cells), 0.0)
            mine = np.concatenate([[0], self._choices[c]])[kernel]
            any_of_them = np.floor((points[D + c] - own) / (1 - own) * each.cells)
            points[D + c] = np.where(points[D + c] < own, mine, any_of_them)
        return points

    def _for_sampling(self) -> tuple[Floats, Floats]:
        """The weights summed up to 1, and (4, D, N) what a sample needs of each kernel; kept while the good stay so."""
        if self._sampling is None:
            cumulated = self._weights.cumsum()
            cumulated /= cumulated[-1]
            self._sampling = cumulated[:-1], np.stack([*self._ends, 1 / self._precision, self._centres])
        return self._sampling

    def _own_share(self, choices: int) -> float:
        """How much of a trial's kernel stays at its own choice; the rest is spread over all of them."""
        return 1 / (1 + choices / len(self._weights))

    def density(self, points: Floats, features: Floats) -> Floats:
        """(B,): up to a factor; the choices and the axes with cells in proportion to what chance would give them."""
        on, D = self._on, self._on.numeric
        kernels = np.exp(features.T @ self._exponents, dtype=on.precision, casting="same_kind")
        for d in range(on.smooth, D):
            kernels *= self._masses(d, points[d])
        for c, each in enumerate(on.each[D:]):
            kernels *= self._own_and_other(c, each.cells)[points[D + c].astype(np.intp)]
        density: Floats = kernels @ self._factors
        return density

    def _masses(self, d: int, middles: Floats) -> Floats:
        """(B, N): of the cells, in proportion to their extent."""
        of, centres, precision = self._on.each[d], self._centres[d], self._precision[d]
        if of.cells < 2 * len(middles):  # each cell begins where the one before ends
            below = ndtr((of.bounds[:, None] - centres) * precision)
            masses: Floats = (below[1:] - below[:-1]) * (1 / np.diff(of.bounds))[:, None]
            return masses[of.bounds.searchsorted(middles) - 1]
        low, high = of.edges(middles)
        masses = ndtr((high[:, None] - centres) * precision) - ndtr((low[:, None] - centres) * precision)
        masses *= (1 / (high - low))[:, None]
        return masses

    def _own_and_other(self, c: int, choices: int) -> Floats:
        """(number of choices, N): the share of each, in proportion to what chance would give it."""
        own = self._own_share(choices)
        assert self._choices is not None
        shares = np.full((choices, len(self._weights)), 1 - own)
        shares[self._choices[c], np.arange(1, len(self._weights))] = 1 - own + own * choices
        shares[:, 0] = 1.0
        return shares


def weigh_by_age(standing: Floats, weights: Floats) -> None:
    """weights: 1 for the latest 25 trials, less for the older ones the older they are, by age.

    standing: for how many trials each stands.
    """
    so_far = standing.cumsum()
    count = float(so_far[-1]) if len(so_far) else 0.0
    if count <= 25:
        weights[:] = standing
        return
    np.subtract(so_far, standing, out=weights)
    weights *= (1 - 1 / count) / max(count - 26, 1)
    weights += 1 / count
    np.minimum(weights, 1.0, out=weights)
    weights *= standing
