"""A round's search space as a Gaussian process sees it: points of the unit cube, and what its kernel compares.

A place is a number in [0, 1] of each numeric axis, in the middle of its cell where it has cells, and of an axis of
choices the place among them; NaN where the parameter does not exist. Arrays: N points, D axes, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import ndtri

from hpo_service.domain.search_space import Params, Value
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.drawing import uniforms
from hpo_service.tuning.parzen import Coordinate, Floats

# Two different choices lie one apart, as the ends of an axis do.
_CHOSEN = math.sqrt(0.5)
# How often a choice changes when a point is moved.
_LEAST_RESAMPLED = 0.1
_LEAST_EXTENT = 0.003


class Cube:
    """
    axes       D: those with more than one value, parents before children
    features   F: a column for a numeric axis, one for each choice
    axis_of    (F,): the axis a feature belongs to
    is_numeric (D,): which axes are not of choices
    """

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        names = [name for name in axes.order if name in axes.round_names and axes[name].size != 1]
        self._each = [Coordinate.of(axes[name]) for name in names]
        self._rows = {name: row for row, name in enumerate(names)}
        self._conditions = [self._condition(name) for name in names]
        widths = [each.cells if each.is_choice else 1 for each in self._each]
        self.axis_of = np.repeat(np.arange(len(names)), widths)
        self._starts = np.cumsum([0, *widths]).tolist()
        self.is_numeric = np.array([not each.is_choice for each in self._each], dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._each)

    def _condition(self, name: str) -> list[tuple[int, list[int]]] | None:
        """Under which places of which parents it exists, as (row, places); None: never."""
        found = []
        for parent, choices in self._axes.asked_of(name).items():
            axis = self._axes[parent]
            allowed = [place for choice in choices if (place := axis.index_of(choice)) is not None]
            if parent in self._rows:
                found.append((self._rows[parent], allowed))
            elif 0 not in allowed:  # a parent with one value
                return None
        return found

    # -- points -------------------------------------------------------------------------------------------

    def places(self, params: Mapping[str, Value]) -> Floats:
        """(D,): where a trial lies; NaN for what lies outside of the ranges."""
        row = np.full(len(self), math.nan)
        for at, each in enumerate(self._each):
            if (name := each.axis.name) in params:
                number = each.axis.number_of(params[name])
                row[at] = math.nan if number is None else each.place(number)
        return row

    def middle(self, seed: int, number: int) -> Floats:
        """(D,): the middle of each numeric axis, and any choices."""
        row = uniforms(len(self), seed, number, "middle")
        row[self.is_numeric] = 0.5
        middle: Floats = self.snapped(row[None])[0]
        return middle

    def spread(self, seed: int, number: int) -> Floats:
        """(D,): a point of a sequence that covers the cube evenly (Roberts, 2018: the additive recurrence R_d)."""
        shift = uniforms(len(self), seed, 0, "spread")
        root = _harmonious(len(self))
        steps = root ** -np.arange(1.0, len(self) + 1)
        point: Floats = self.snapped(((shift + number * steps) % 1.0)[None])[0]
        return point

    def anywhere(self, count: int, seed: int, number: int) -> Floats:
        """(count, D), uniformly."""
        return self.snapped(uniforms(count * len(self), seed, number, "anywhere").reshape(count, len(self)))

    def around(self, points: Floats, each: int, reach: Floats | float, seed: int, number: int, purpose: str) -> Floats:
        """(N × each, D): points moved by a normal step of this reach on each axis, and some choices by chance."""
        shape = (len(points) * each, len(self))
        random = uniforms(2 * shape[0] * shape[1], seed, number, purpose).reshape(2, *shape)
        return self.snapped(self._moved(self.positions(np.repeat(points, each, axis=0)), random, reach))

    def _moved(self, positions: Floats, random: Floats, reach: Floats | float) -> Floats:
        numeric = self.is_numeric
        by_chance = np.isnan(positions) | (~numeric & (random[1] < np.maximum(reach, _LEAST_RESAMPLED)))
        stepped = positions + reach * ndtri(random[0])
        stepped = np.abs(stepped)  # reflected at the ends
        stepped = np.where(stepped > 1, 2 - stepped, stepped)
        moved: Floats = np.where(by_chance, random[0], np.where(numeric, np.clip(stepped, 0, 1), positions))
        return moved

    def extent(self, places: Floats) -> Floats:
        """(D,): how far these lie apart on each numeric axis, from nearly 0 to 1 (all over it); 1 for choices."""
        extent = np.ones(len(self))
        for at, each in enumerate(self._each):
            there = places[~np.isnan(places[:, at]), at]
            if not each.is_choice and len(there):
                extent[at] = np.clip(math.sqrt(12) * there.std(), _LEAST_EXTENT, 1)
        rounded: Floats = np.round(extent, 3)  # the last digits depend on the machine, and a draw shall not
        return rounded

    def positions(self, places: Floats) -> Floats:
        """(N, D): the places, with numbers in [0, 1] for choices, too; inverse of `snapped`."""
        positions = places.copy()
        for at, each in enumerate(self._each):
            if each.is_choice:
                positions[:, at] = (places[:, at] + 0.5) / each.cells
        return positions

    def snapped(self, positions: Floats) -> Floats:
        """(N, D): the places that these positions mean; NaN where a parameter does not exist."""
        places = np.empty_like(positions)
        for at, each in enumerate(self._each):
            if each.is_choice:
                places[:, at] = np.minimum(np.floor(positions[:, at] * each.cells), each.cells - 1)
            elif each.cells:
                places[:, at] = each.snapped(positions[:, at])
            else:
                places[:, at] = positions[:, at]
            self._take_away_what_does_not_exist(places, at)
        return places

    def _take_away_what_does_not_exist(self, places: Floats, at: int) -> None:
        conditions = self._conditions[at]
        if conditions is None:
            places[:, at] = math.nan
            return
        for row, allowed in conditions:
            parent = places[:, row]
            if not self._each[row].is_choice:
                parent = np.floor(parent * (self._each[row].axis.size or 1))
            places[~np.isin(parent, allowed), at] = math.nan

    # -- what the kernel compares -------------------------------------------------------------------------

    def features(self, places: Floats) -> Floats:
        """(N, F): an absent number rests in the middle, an absent choice at none."""
        features = np.zeros((len(places), len(self.axis_of)))
        for at, (each, start) in enumerate(zip(self._each, self._starts[:-1], strict=True)):
            column = places[:, at]
            if each.is_choice:
                (there,) = np.nonzero(~np.isnan(column))
                features[there, start + column[there].astype(np.intp)] = _CHOSEN
            else:
                features[:, start] = np.where(np.isnan(column), 0.5, column)
        return features

    def params(self, places: Floats) -> Params:
        """places: (D,)."""
        return {
            each.axis.name: each.value(place)
            for each, place in zip(self._each, places.tolist(), strict=True)
            if not math.isnan(place)
        }


def _harmonious(dimensions: int) -> float:
    """The root of x^(d + 1) = x + 1 above 1."""
    root = 1.5
    for _ in range(40):
        root = (1 + root) ** (1 / (dimensions + 1))
    return root
