"""Quasi-random search: a Sobol' or Halton sequence fills the ranges evenly; every point of it is used once.

system_attrs: {"qmc_index": the point's place in the sequence}. Every parameter has a coordinate of its own, also where
a trial does not have it, so that conditions do not disturb the evenness of the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import HistoryTrial
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.drawing import DrawnParams


class QuasiRandom:
    def __init__(self, seed: int, dimensions: int, qmc_type: str = "sobol", scramble: bool = False, **_: bool) -> None:
        """The other options of Optuna's class only switch warnings."""
        dimensions = max(dimensions, 1)  # with define_by_run there are none until a trial has asked for one
        from scipy.stats import qmc  # 0.4 s to import, for those who use it

        rng = np.random.default_rng(seed)
        kind = qmc.Sobol if qmc_type == "sobol" else qmc.Halton
        self._sequence: Any = kind(dimensions, scramble=scramble, rng=rng)
        self._next = 0

    def absorb(self, trial: HistoryTrial) -> None:
        self._next = max(self._next, trial.system_attrs.get("qmc_index", -1) + 1)

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        index = self._next
        if index < self._sequence.num_generated:
            self._sequence.reset()
        if index > self._sequence.num_generated:
            self._sequence.fast_forward(index - self._sequence.num_generated)
        positions = dict(zip(axes.names, self._sequence.random(1)[0].tolist(), strict=True))
        return DrawnParams(axes.complete(fixed, lambda axis: axis.at(positions[axis.name])), {"qmc_index": index})
