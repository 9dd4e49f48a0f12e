"""What trials have gained after a step: an estimate of the final value of one that was pruned there."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right

from hpo_service.domain.trial import HistoryTrial, TrialState

_CURVES = 128  # the latest ones
_POINTS = 64  # of each, about evenly spaced


class LaterGains:
    def __init__(self) -> None:
        self._curves: dict[int, tuple[list[int], list[float]]] = {}  # by number: the steps, and what was gained after
        self._medians: dict[int, float] = {}

    def absorb(self, trial: HistoryTrial) -> None:
        if trial.state is not TrialState.COMPLETE or not trial.values or not trial.reports:
            return
        every = math.ceil(len(trial.reports) / _POINTS)
        final, thinned = trial.values[0], trial.reports[::every]
        gains = [final - value for _, value in thinned]
        if not all(map(math.isfinite, gains)):
            return
        self._curves[trial.number] = [step for step, _ in thinned], gains
        if len(self._curves) > _CURVES:
            del self._curves[min(self._curves)]
        self._medians.clear()

    def after(self, step: int) -> float:
        """The median gain after this step, of the trials that reported at it or before; 0 where there are none."""
        if step not in self._medians:
            reached = [
                gains[place - 1] for steps, gains in self._curves.values() if (place := bisect_right(steps, step))
            ]
            self._medians[step] = statistics.median(reached) if reached else 0.0
        return self._medians[step]
