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
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hpo_service.domain.search_space import Value
from hpo_service.tuning.axes import Axis, Choices, Continuous, OrderedChoices, Stepped, Whole

Floats = NDArray[np.float64]

# An axis of at least so many cells counts as continuous: the narrowest kernel then spans ten of them, and its density
# in the middle of one is as good as its mass in it.
_SMOOTH = 1_000
# Up to so many axes a product of kernels stays within single precision, which is four times as fast: each axis adds at
# most a factor of 80.
_FEW = 16
# On an axis of fewer cells each kernel keeps its mass in each of them, which changes with the kernel only.
_FEW_CELLS = 48
# From so many trials on kernels are at least as wide as LEAST_WIDTH; with fewer, N, at least as wide as 1 / (2 + N).
MANY = 98
LEAST_WIDTH = 1 / 100
_ROOT = math.sqrt(0.5)


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
        assert isinstance(axis, Whole | Stepped | OrderedChoices)
        first, step = (axis.low, axis.step) if isinstance(axis, Whole) else (0, 1)
        low, span = first - step / 2, step * axis.size
        return cls(axis, low, span, False, 0 if axis.size >= _SMOOTH else axis.size)

    @property
    def is_choice(self) -> bool:
        return isinstance(self.axis, Choices)

    def place(self, number: Any) -> float:
        """Where a trial's number lies."""
        if isinstance(self.axis, Choices):
            return self.axis.place_of(int(number))
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

    @cached_property
    def per_extent(self) -> Floats:
        """(cells,): 1 over how far each reaches."""
        return 1 / np.diff(self.bounds)

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
    """Some axes together: first the continuous ones, then those with cells, then the choices."""

    def __init__(self, axes: Sequence[Coordinate], rows: Sequence[int]) -> None:
        """rows: where each lies among all the axes of the round."""
        order = sorted(range(len(axes)), key=lambda k: (axes[k].is_choice, axes[k].cells > 0))
        self.each = [axes[k] for k in order]
        self._rows = [rows[k] for k in order]
        self.numeric = sum(not axis.is_choice for axis in axes)
        self.smooth = sum(axis.cells == 0 for axis in axes)
        # The axes on which every kernel keeps its mass in each cell.
        self.few_celled = [d for d in range(self.smooth, self.numeric) if self.each[d].cells < _FEW_CELLS]
        self.precision = np.dtype(np.float32 if len(axes) <= _FEW else np.float64)

    def of(self, places: Sequence[float]) -> list[float]:
        """These axes' part of a trial's places on all axes."""
        return [places[row] for row in self._rows]

    def has(self, places: Sequence[float]) -> bool:
        """Whether the trial has all of these axes."""
        return not any(math.isnan(places[row]) for row in self._rows)

    def features(self, points: Floats) -> Floats:
        """(2 S + 1, B): of the S continuous axes what the exponent of a kernel is linear in; see `Mixture`."""
        S = self.smooth
        features = np.empty((2 * S + 1, points.shape[1]))
        np.multiply(points[:S], points[:S], out=features[:S])
        features[S : 2 * S] = points[:S]
        features[-1] = 1.0
        return features

    def values(self, point: Floats) -> dict[str, Value]:
        return {each.axis.name: each.value(place) for each, place in zip(self.each, point.tolist(), strict=True)}


class Mixture:
    """A kernel at c of width w, and p = 1 / w: exp(-(x - c)² p² / 2) = exp(x² · -p²/2 + x · c p² - c² p²/2).

    What is known of a kernel is a row of one table, so that a trial that comes or goes is one move. The prior's is
    the first, then come the trials' by age. The columns:

    centres, choices   c; on each axis of choices the place among them
    widths             w
    exponents          -p²/2 and c p² of each continuous axis, and the sum of -c² p²/2: what features are multiplied by
    share, inside      p over the kernel's mass inside the range, multiplied over the continuous axes; this mass,
                       multiplied over the axes with cells
    cells              of each axis with few cells: the mass in each, in proportion to its extent
    """

    def __init__(self, on: Coordinates) -> None:
        D, S = on.numeric, on.smooth
        self._on = on
        widths = (D, len(on.each) - D, D, 2 * S + 1, 1, 1, *(on.each[d].cells for d in on.few_celled))
        ends = list(accumulate(widths))
        self._columns = [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
        self._given = ends[2]  # the columns up to here are given; the others follow from them
        self._table = np.zeros((1, ends[-1]))
        self._size = 1
        self._reserve(64)
        self._centres[0], self._widths[0] = 0.5, 1.0
        self._find(slice(0, 1))

    def _reserve(self, capacity: int) -> None:
        table = np.zeros((capacity, self._table.shape[1]))
        table[: self._size] = self._table[: self._size]
        self._table, self._in_a_row = table, table.reshape(-1)
        self._weights = np.ones(capacity)
        self._scaled = np.empty(capacity)
        blocks = [table[:, columns] for columns in self._columns]
        self._centres, self._choices, self._widths, self._exponents, share, inside = blocks[:6]
        self._share, self._inside = share[:, 0], inside[:, 0]
        self._cells = dict(zip(self._on.few_celled, blocks[6:], strict=True))

    # -- all at once --------------------------------------------------------------------------------------

    def fit(self, places: Floats, standing: Floats | None = None) -> Mixture:
        """places: (D + number of choice axes, N - 1), by age; standing: see `weigh`."""
        N = places.shape[1] + 1
        self._size = 1
        if len(self._table) < N:
            self._reserve(2 * N)
        self._size = N
        self._table[1:N, : len(places)] = places.T
        self.measure()
        self.weigh(standing)
        return self

    def measure(self) -> None:
        """Find how wide all kernels are, and what follows from that."""
        self._widths[1 : self._size] = widths_of(self._centres[1 : self._size].T).T
        self._find(slice(0, self._size))

    def _find(self, rows: slice) -> None:
        on, S = self._on, self._on.smooth
        self._sampling: tuple[Floats, Floats] | None = None
        centres, precisions = self._centres[rows], 1 / self._widths[rows]
        mass = _mass(centres, precisions)[1]
        p = precisions[:, :S]
        products = centres[:, :S] * p * p
        total = np.add.reduce(products * centres[:, :S], axis=1, keepdims=True)
        share = np.multiply.reduce(p / mass[:, :S], axis=1, keepdims=True)
        inside = np.multiply.reduce(mass[:, S:], axis=1, keepdims=True)
        found = [-0.5 * p * p, products, -0.5 * total, share, inside]
        for d in on.few_celled:
            of = on.each[d]
            so_far = ndtr((of.bounds - centres[:, d, None]) * precisions[:, d, None])
            found.append((so_far[:, 1:] - so_far[:, :-1]) * of.per_extent)
        self._table[rows, self._given :] = np.concatenate(found, axis=1)

    # -- one by one ---------------------------------------------------------------------------------------

    def insert(self, at: int, places: Sequence[float]) -> None:
        """One more trial, the at-th by age. Widths are to be set, or measured, before the next use."""
        size = self._size
        if size == len(self._table):
            self._reserve(2 * size)
        row, width = at + 1, self._table.shape[1]
        if row < size:
            self._in_a_row[(row + 1) * width : (size + 1) * width] = self._in_a_row[row * width : size * width]
        self._table[row, : len(places)] = places
        self._size = size + 1

    def remove(self, at: int) -> None:
        row, size, width = at + 1, self._size, self._table.shape[1]
        self._in_a_row[row * width : (size - 1) * width] = self._in_a_row[(row + 1) * width : size * width]
        self._size = size - 1

    def set_widths(self, at: int, places: Sequence[float], widths: Sequence[float]) -> None:
        """How wide the kernel of the at-th trial is on the numeric axes."""
        if self._on.smooth < self._on.numeric:
            self._widths[at + 1] = widths
            self._find(slice(at + 1, at + 2))
            return
        # What `_find` finds, in plain numbers: for one kernel in a tenth of the time.
        squares, products, total, share = [], [], 0.0, 1.0
        for c, width in zip(places, widths, strict=False):
            p = 1 / width
            begin = c * p
            squares.append(-0.5 * p * p)
            products.append(begin * p)
            total -= 0.5 * begin * p * c
            share *= p / (0.5 * (math.erfc((begin - p) * _ROOT) - math.erfc(begin * _ROOT)))
        columns = slice(self._given, self._given + 2 * len(squares) + 2)
        self._table[at + 1, columns] = (*squares, *products, total, share)

    def weigh(self, standing: Floats | None) -> None:
        """standing (N - 1,): how many trials each one stands for, as its weight; None: 1 each."""
        N = self._size
        weights = self._weights[:N]
        weigh_by_age(standing, weights[1:])
        factors = np.multiply(weights, self._share[:N], out=self._scaled[:N])
        if self._on.smooth < self._on.numeric:
            factors /= self._inside[:N]
        self._factors = factors.astype(self._on.precision)

    # -- candidates ---------------------------------------------------------------------------------------

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
            # The kernel's own choice with its share; with the rest, and from the prior, any.
            own = np.where(kernel > 0, self._own_share(each.cells), 0.0)
            any_of_them = np.floor((points[D + c] - own) / (1 - own) * each.cells)
            points[D + c] = np.where(points[D + c] < own, self._choices[:, c].take(kernel), any_of_them)
        return points

    def _for_sampling(self) -> tuple[Floats, Floats]:
        """The cumulated weights, and (4, D, N) what a sample needs of each kernel; cached until the kernels change."""
        if self._sampling is None:
            N = self._size
            cumulated = self._weights[:N].cumsum()
            cumulated /= cumulated[-1]
            centres, precisions = self._centres[:N], 1 / self._widths[:N]
            self._sampling = (
                cumulated[:-1],
                np.stack([each.T for each in (*_mass(centres, precisions), 1 / precisions, centres)]),
            )
        return self._sampling

    def _own_share(self, choices: int) -> float:
        """How much of a trial's kernel stays at its own choice; the rest is spread over all of them."""
        return 1 / (1 + choices / self._size)

    # -- their density ------------------------------------------------------------------------------------

    def density(self, points: Floats, features: Floats) -> Floats:
        """(B,): up to a factor; the choices and the axes with cells in proportion to what chance would give them."""
        on, D, N = self._on, self._on.numeric, self._size
        kernels = np.exp(features.T @ self._exponents[:N].T, dtype=on.precision, casting="same_kind")
        for d in range(on.smooth, D):
            kernels *= self._masses(d, points[d])
        for c, each in enumerate(on.each[D:]):
            kernels *= self._own_or_other(c, each.cells, points[D + c].astype(np.intp))
        density: Floats = kernels @ self._factors
        return density

    def _masses(self, d: int, middles: Floats) -> Floats:
        """(B, N): of the cells, in proportion to their extent."""
        of, N = self._on.each[d], self._size
        if d in self._cells:
            return self._cells[d].T[:, :N].take(of.bounds.searchsorted(middles) - 1, axis=0)
        if len(middles) > of.cells:  # each cell comes more than once on the average
            masses = self._masses_between(d, of.bounds[:-1], of.bounds[1:])
            return masses.take(of.bounds.searchsorted(middles) - 1, axis=0)
        return self._masses_between(d, *of.edges(middles))

    def _masses_between(self, d: int, low: Floats, high: Floats) -> Floats:
        N = self._size
        centres, precisions = self._centres[:N, d], 1 / self._widths[:N, d]
        masses: Floats = ndtr((high[:, None] - centres) * precisions) - ndtr((low[:, None] - centres) * precisions)
        masses *= (1 / (high - low))[:, None]
        return masses

    def _own_or_other(self, c: int, choices: int, drawn: NDArray[np.intp]) -> Floats:
        """(B, N): the share of each drawn choice in each kernel, in proportion to what chance would give it."""
        N, own = self._size, self._own_share(choices)
        if len(drawn) > choices:  # each choice is drawn more than once on the average
            return self._own_or_other(c, choices, np.arange(choices)).take(drawn, axis=0)
        shares = np.where(drawn[:, None] == self._choices[:N, c], 1 - own + own * choices, 1 - own)
        shares[:, 0] = 1.0
        return shares


def _mass(centres: Floats, precisions: Floats) -> tuple[Floats, Floats]:
    """What part of each kernel lies below the range, and what inside."""
    begin = centres * precisions
    below = ndtr(-begin)
    mass: Floats = ndtr(precisions - begin) - below
    return below, mass


def widths_of(places: Floats) -> Floats:
    """(D, N - 1), as places are: how far each lies from the further of its neighbours on the axis, or a bit more."""
    D, count = places.shape
    if count < 2:
        return np.maximum(places, 1 - places)
    order = places.argsort(axis=1, kind="stable")
    order += np.arange(0, D * count, count)[:, None]
    ranked = places.take(order)
    gaps = ranked[:, 1:] - ranked[:, :-1]
    further = np.empty((D, count))
    np.maximum(gaps[:, 1:], gaps[:, :-1], out=further[:, 1:-1])
    further[:, 0], further[:, -1] = gaps[:, 0], gaps[:, -1]
    # Narrower ones would say more than one trial among so many can.
    np.maximum(further, 1 / min(1 / LEAST_WIDTH, 2.0 + count), out=further)
    widths = np.empty((D, count))
    widths.ravel()[order] = further
    return widths


def weigh_by_age(standing: Floats | None, weights: Floats) -> None:
    """weights: 1 for the latest 25 trials, less for the older ones the older they are, by age.

    standing: how many trials each one stands for; None: 1 each.
    """
    if standing is None:
        count = float(len(weights))
        older = np.arange(count)
    else:
        so_far = np.add.accumulate(standing)
        count = float(so_far[-1]) if len(so_far) else 0.0
        older = np.subtract(so_far, standing, out=so_far)
    if count <= 25:
        weights[:] = 1.0 if standing is None else standing
        return
    np.multiply(older, (1 - 1 / count) / max(count - 26, 1), out=weights)
    weights += 1 / count
    np.minimum(weights, 1.0, out=weights)
    if standing is not None:
        weights *= standing
