"""In a finite search space: no combination twice while another is left.

For a sampler that learns, a repeated draw is replaced by the nearest new combination, a few steps away on one axis; for
others, or if none is near, by any new one, in a shuffled order. Imported combinations come when no new one is left.
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
        """near: whether to replace a repeated draw by a near combination first."""
        self._near = near
        # All known combinations, and those given out: when no new one is left, imported ones still are.
        self._known, self._given_out = GridSearch(seed), GridSearch(seed)
        self._axes: Axes | None = None
        self._is_finite = False

    def absorb(self, trial: HistoryTrial) -> None:
        self._known.absorb(trial)
        if trial.was_given_out:
            self._given_out.absorb(trial)

    def deduplicated(self, drawn: DrawnParams, number: int, axes: Axes) -> DrawnParams:
        """What was drawn, unless it is known; then a combination that is not, while there is one."""
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
    """Those that differ on one axis that no condition depends on: the nearest first, equally near ones shuffled."""
    asked = {parent for name in axes.names for parent in axes.asked_of(name)}
    movable = [name for name in params if name in axes.round_names and name not in asked]
    for far in range(1, _FURTHEST + 1):
        moves = [(name, place) for name in movable for place in _places_near(axes[name], params[name], far)]
        for name, place in sorted(moves, key=lambda move: _by_chance(number, *move)):
            yield {**params, name: axes[name].point(place)}


def _places_near(axis: Axis, value: Value, far: int) -> list[int]:
    """The places at this distance on the axis; of unordered choices all others have the distance 1."""
    at, size = axis.index_of(value), axis.size or 0
    if at is None:
        return []
    if isinstance(axis, Choices):
        return [place for place in range(size) if place != at] if far == 1 else []
    return [place for place in (at - far, at + far) if 0 <= place < size]


def _by_chance(number: int, name: str, place: int) -> bytes:
    return hashlib.blake2b(f"{number}/{name}/{place}".encode(), digest_size=8).digest()
