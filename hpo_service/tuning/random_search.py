"""Random search: every param uniform in its range, or in the logarithm of it."""

from __future__ import annotations

from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import HistoryTrial
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.drawing import DrawnParams, positions


class RandomSearch:
    def __init__(self, seed: int) -> None:
        self._seed = seed

    def absorb(self, trial: HistoryTrial) -> None:
        pass  # nothing is learned

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        position = positions(self._seed, number)
        return DrawnParams(axes.complete(fixed, lambda axis: axis.at(position())))
