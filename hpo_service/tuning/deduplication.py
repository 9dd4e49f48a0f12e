"""In a finite search space: no combination twice while another is left.

A sampler that learns is given the nearest combination to the one it drew, by a step or some on one axis; others, and
where there is none near, any that is left, in a shuffled order. What was imported comes after what nobody has tried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from hpo_service.domain.search_space import Params, SearchSpace, Value
from hpo_service.domain.trial import BECAUSE, DRAWN_BY, HistoryTrial
from hpo_service.tuning.axes import Axes, Axis, Choices
from hpo_service.tuning.drawing import DrawnParams, Exhausted
from hpo_service.tuning.grid_search import Grid, GridSearch, TooEntangled

MOST_COMBINATIONS = 1_000_000
_FURTHEST = 3  # steps on one axis


def is_finite(axes: Axes) -> bool:
    """Whether every parameter has so many values that all combinations are at most MOST_COMBINATIONS."""
    if any(axes[name].size is None for name in axes.round_names):
        return False
    try:
        return Grid(axes).size <= MOST_COMBINATIONS
    except TooEntangled:
        return False


def is_deduplicated(space: SearchSpace) -> bool:
    return is_finite(Axes(space, space))


class Deduplicator:
    """Knows the trials of a study whose search space is finite."""

    def __init__(self, seed: int, near: bool) -> None:
        """near: whether what is given instead shall be near."""
        self._near = near
        # All that is known, and what was given out: it may be imported trials that are left.
        self._known, self._given_out = GridSearch(seed), GridSearch(seed)
        self._axes: Axes | None = None
        self._is_finite = False

    def absorb(self, trial: HistoryTrial) -> None:
        self._known.absorb(trial)
        if trial.was_given_out:
            self._given_out.absorb(trial)

    def deduplicated(self, drawn: DrawnParams, number: int, axes: Axes) -> DrawnParams:
        """What was drawn, unless it is known; then one that is not."""
        if axes is not self._axes:
            self._axes, self._is_finite = axes, is_finite(axes)
        if not self._is_finite or not self._known.has(drawn.params, axes):
            return drawn
        said = {key: drawn.system_attrs[key] for key in (DRAWN_BY, BECAUSE) if key in drawn.system_attrs}
        if self._near:
            for params in _neighbours(drawn.params, number, axes):
                if not self._known.has(params, axes):
                    return DrawnParams(params, said)
        for left in (self._known, self._given_out):
            try:
                return DrawnParams(left.draw(number, axes, {}).params, said)
            except Exhausted:
                continue
        return drawn


def _neighbours(params: Params, number: int, axes: Axes) -> Iterator[Params]:
    """Those that differ on one axis that no condition asks about, the nearest first, in an order by chance."""
    asked = {parent for name in axes.names for parent in axes.asked_of(name)}
    movable = [name for name in params if name in axes.round_names and name not in asked]
    for far in range(1, _FURTHEST + 1):
        moves = [(name, place) for name in movable for place in _places_near(axes[name], params[name], far)]
        for name, place in sorted(moves, key=lambda move: _by_chance(number, *move)):
            yield {**params, name: axes[name].point(place)}


def _places_near(axis: Axis, value: Value, far: int) -> list[int]:
    """So far away on this axis; of choices without an order all others are equally far."""
    at, size = axis.index_of(value), axis.size or 0
    if at is None:
        return []
    if isinstance(axis, Choices):
        return [place for place in range(size) if place != at] if far == 1 else []
    return [place for place in (at - far, at + far) if 0 <= place < size]


def _by_chance(number: int, name: str, place: int) -> bytes:
    return hashlib.blake2b(f"{number}/{name}/{place}".encode(), digest_size=8).digest()
