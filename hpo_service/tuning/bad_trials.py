"""TPE's mixture of the bad trials (all that are not good), updated trial by trial.

Between draws one or two of some hundred trials come or go, and each changes only the kernels of its neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from hpo_service.tuning.parzen import LEAST_WIDTH, MANY, Coordinates, Floats, Mixture

# The share of changed kernels above which measuring all of them takes less time than these one by one.
_MANY_MOVED = 0.2


class BadTrials:
    """The bad trials on some axes together. Trials are known by number, which is their age.

    stale   the trials whose place may have changed, to be looked up before the next draw
    """

    def __init__(self, on: Coordinates) -> None:
        self._numeric = on.numeric
        self._mixture = Mixture(on)
        self._places: dict[int, Sequence[float]] = {}
        self._numbers: list[int] = []
        self._sampled = np.empty(64, dtype=np.bool_)
        self._standing = np.empty(64)
        # None while there are few trials: each new one then makes all kernels narrower.
        self._neighbours: list[Neighbours] | None = None
        self._moved: set[int] = set()
        self.stale: set[int] = set()

    def put(self, number: int, places: Sequence[float], sampled: bool) -> None:
        """places: as `Coordinates.of` orders them; sampled: whether its weight includes trials that were left out."""
        at = bisect_left(self._numbers, number)
        if number not in self._places:
            self._insert(at, number, places)
        self._sampled[at] = sampled

    def _insert(self, at: int, number: int, places: Sequence[float]) -> None:
        size = len(self._numbers)
        if size == len(self._sampled):
            self._sampled = np.concatenate([self._sampled, self._sampled])
            self._standing = np.empty(2 * size)
        if at < size:
            self._sampled[at + 1 : size + 1] = self._sampled[at:size]
        self._numbers.insert(at, number)
        self._places[number] = places
        self._mixture.insert(at, places)
        if self._neighbours is not None:
            self._moved.add(number)
            for axis, neighbours in enumerate(self._neighbours):
                self._moved.update(neighbours.add(places[axis], number))

    def drop(self, number: int) -> None:
        places = self._places.pop(number, None)
        if places is None:
            return
        at, size = bisect_left(self._numbers, number), len(self._numbers)
        self._sampled[at : size - 1] = self._sampled[at + 1 : size]
        del self._numbers[at]
        self._mixture.remove(at)
        if self._neighbours is not None:
            for axis, neighbours in enumerate(self._neighbours):
                self._moved.update(neighbours.drop(places[axis], number))
            self._moved.discard(number)

    def mixture(self, sampled_for: float) -> Mixture:
        """sampled_for: the weight of each sampled trial; the others have 1."""
        if len(self._numbers) < MANY:
            self._neighbours = None
            self._mixture.measure()
        elif self._neighbours is None:
            self._neighbours = [Neighbours(self._ranked_by(d)) for d in range(self._numeric)]
            self._mixture.measure()
        elif len(self._moved) > len(self._numbers) * _MANY_MOVED:
            self._mixture.measure()
        else:
            for number in self._moved:
                widths = [neighbours.widths[number] for neighbours in self._neighbours]
                self._mixture.set_widths(bisect_left(self._numbers, number), self._places[number], widths)
        self._moved.clear()
        self._mixture.weigh(self._all_standing(sampled_for) if sampled_for > 1 else None)
        return self._mixture

    def _all_standing(self, sampled_for: float) -> Floats:
        size = len(self._numbers)
        standing = self._standing[:size]
        standing.fill(1.0)
        standing[self._sampled[:size]] = sampled_for
        return standing

    def _ranked_by(self, axis: int) -> list[tuple[float, int]]:
        return sorted((places[axis], number) for number, places in self._places.items())


class Neighbours:
    """Many trials in the order of one axis, and of equal ones by number.

    widths   of their kernels, by number: how far each lies from its further neighbour, but at least LEAST_WIDTH
    """

    def __init__(self, ranked: list[tuple[float, int]]) -> None:
        self._ranked = ranked
        self.widths: dict[int, float] = {}
        self._measure(0, len(self._ranked))

    def add(self, place: float, number: int) -> list[int]:
        """Add a trial; return the numbers of those whose widths have changed."""
        at = bisect_left(self._ranked, (place, number))
        self._ranked.insert(at, (place, number))
        return self._measure(at - 1, at + 2)

    def drop(self, place: float, number: int) -> list[int]:
        at = bisect_left(self._ranked, (place, number))
        del self._ranked[at]
        del self.widths[number]
        return self._measure(at - 1, at + 1)

    def _measure(self, first: int, end: int) -> list[int]:
        ranked, widths, last = self._ranked, self.widths, len(self._ranked) - 1
        changed = []
        for at in range(first if first > 0 else 0, end if end <= last else last + 1):
            place, number = ranked[at]
            width = LEAST_WIDTH
            if at and (gap := place - ranked[at - 1][0]) > width:
                width = gap
            if at < last and (gap := ranked[at + 1][0] - place) > width:
                width = gap
            if widths.get(number) != width:
                widths[number] = width
                changed.append(number)
        return changed
