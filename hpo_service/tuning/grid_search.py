"""Grid search: every point of a finite search space once, in an order shuffled by the study's seed.

A point's index is its rank among all points, conditions taken into account: a parameter that does not exist
contributes nothing, so that no point comes twice. Ranks are counted, never listed, so a grid may be of any
size. A trial with a point's params counts as that point, whoever gave them: also one that was enqueued, or failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

from hpo_service.domain.choices import identity
from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import HistoryTrial
from hpo_service.tuning.axes import Axes, Choices, OrderedChoices
from hpo_service.tuning.drawing import DrawnParams, Exhausted, positions

MOST_CONTEXTS = 100_000


class TooEntangled(Exception):
    """The conditions depend on so many parameters at once that the points cannot be counted."""


class Grid:
    """The points of a search space, each with its rank."""

    def __init__(self, axes: Axes) -> None:
        """Raise TooEntangled."""
        self._axes = axes
        self._order = [name for name in axes.order if name in axes.round_names]
        asked = [axes.asked_of(name) for name in self._order]
        # The params that a later condition asks about: all that the number of points from there on depends on.
        self._asked_later = [set[str]().union(*asked[place:]) for place in range(len(self._order) + 1)]
        self._counts: dict[tuple[int, tuple[tuple[str, Hashable], ...]], int] = {}
        self.size = self._count(0, {})

    def _count(self, place: int, params: Params) -> int:
        """How many ways there are to complete these params from this place on."""
        if place == len(self._order):
            return 1
        relevant = self._asked_later[place]
        key = place, tuple((name, identity(v)) for name, v in params.items() if name in relevant)
        if key not in self._counts:
            if len(self._counts) >= MOST_CONTEXTS:
                raise TooEntangled
            self._counts[key] = sum(count * ways for count, ways, _ in self._branches(place, params))
        return self._counts[key]

    def _branches(self, place: int, params: Params) -> Iterator[tuple[int, int, Params]]:
        """(how many values, ways to complete each, the params with the first of them): values alike are one branch."""
        name = self._order[place]
        if not self._axes.exists(name, params):
            yield 1, self._count(place + 1, params), params
            return
        values = self._axes[name]
        assert values.size is not None
        if name not in self._asked_later[place + 1]:
            yield values.size, self._count(place + 1, params), params
            return
        assert isinstance(values, Choices | OrderedChoices)
        for value in values.values:
            chosen = {**params, name: value}
            yield 1, self._count(place + 1, chosen), chosen

    def point(self, rank: int) -> Params:
        params: Params = {}
        for place, name in enumerate(self._order):
            if not self._axes.exists(name, params):
                continue
            values = self._axes[name]
            k = 0
            for count, ways, _ in self._branches(place, params):
                if rank < count * ways:
                    k += rank // ways
                    rank %= ways
                    break
                rank -= count * ways
                k += count
            params[name] = values.point(k)
        return params

    def rank(self, params: Params) -> int | None:
        """The index of the point with these params; None when they are not a point of this grid."""
        rank = 0
        seen: Params = {}
        for place, name in enumerate(self._order):
            if not self._axes.exists(name, seen):
                if name in params:
                    return None
                continue
            k = self._axes[name].index_of(params[name]) if name in params else None
            if k is None:
                return None
            for count, ways, _ in self._branches(place, seen):
                rank += ways * min(k, count)
                if k < count:
                    break
                k -= count
            seen[name] = params[name]
        return rank if len(seen) == len(params) else None


class Shuffle:
    """A permutation of 0..size-1 by a seed, one at a time: a Feistel network, repeated until the image is inside."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        self._key = str(seed).encode()

    def __getitem__(self, position: int) -> int:
        image = self._once(position)
        while image >= self._size:
            image = self._once(image)
        return image

    def _once(self, image: int) -> int:
        left, right = image >> self._half, image & self._mask
        for turn in range(4):
            mixed = hashlib.blake2b(f"{turn}/{right}".encode(), key=self._key, digest_size=16).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "big") & self._mask)
        return left << self._half | right


class GridSearch:
    """system_attrs: {"grid_index": the point's rank}. After a narrowing by hand it is the grid of the new ranges."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: dict[int, Params] = {}
        self._axes: Axes | None = None

    def absorb(self, trial: HistoryTrial) -> None:
        self._seen[trial.number] = trial.params
        if self._axes is not None:
            self._take(trial.params)

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        """Raise Exhausted when every point is taken, unless some params were given and only the others are drawn."""
        if fixed:
            position = positions(self._seed, number)
            return DrawnParams(axes.complete(fixed, lambda axis: axis.point(int(position() * (axis.size or 1)))))
        self._restrict_to(axes)
        while self._next < self._grid.size:
            rank = self._order[self._next]
            if rank not in self._taken:
                point = self._grid.point(rank)
                return DrawnParams(axes.complete(point, lambda axis: axis.point(0)), {"grid_index": rank})
            self._next += 1
        raise Exhausted(f"all {self._grid.size} points of the grid have been drawn")

    def has(self, params: Params, axes: Axes) -> bool:
        """Whether a trial with these params is known."""
        self._restrict_to(axes)
        return self._grid.rank(params) in self._taken

    def _restrict_to(self, axes: Axes) -> None:
        if self._axes is axes:
            return
        self._axes = axes
        self._grid = Grid(axes)
        self._order = Shuffle(self._grid.size, self._seed)
        self._next = 0
        self._taken: set[int] = set()
        for params in self._seen.values():
            self._take(params)

    def _take(self, params: Params) -> None:
        rank = self._grid.rank(params)
        if rank is not None:
            self._taken.add(rank)
