"""TPE by Optuna, on a bounded history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.samplers import TPESampler

from hpo_service.domain.search_space import Params, Value
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, Axis
from hpo_service.tuning.bounded_history import BEST, BoundedHistory, Restated
from hpo_service.tuning.drawing import Drawn, short_seed
from hpo_service.tuning.optuna_study import StudyInMemory, frozen


class Tpe:
    def __init__(self, seed: int, directions: Sequence[str], options: Mapping[str, Any]) -> None:
        self._seed = seed
        self._directions = directions
        self._options = dict(options)
        if options.get("group"):
            self._options["multivariate"] = True  # with several directions Optuna asks to have it said
        self._history = BoundedHistory(directions)

    def absorb(self, trial: HistoryTrial) -> None:
        self._history.absorb(trial)

    def draw(self, number: int, axes: Axes, fixed: Params) -> Drawn:
        self._history.enter(axes)
        sampler = TPESampler(seed=short_seed(self._seed, number), **self._options)
        # Optuna counts a tenth of the trials it sees as good; it sees a part of them.
        good = min(math.ceil(0.1 * self._history.finished), BEST)
        sampler._gamma = lambda _: good
        past = [*self._history.trials(), *self._history.running()]
        study = StudyInMemory(self._directions, [self._frozen(trial, axes) for trial in past])
        now = frozen(number, TrialState.RUNNING, {}, {})
        joint = sampler.infer_relative_search_space(study, now)
        joint = {name: axes.distributions[name] for name in joint if name not in fixed}
        drawn = sampler.sample_relative(study, now, joint)

        def value_of(axis: Axis) -> Value:
            if axis.size == 1:
                return axis.point(0)
            if axis.name in drawn:
                return axis.nearest(drawn[axis.name])
            return axis.nearest(sampler.sample_independent(study, now, axis.name, axis.distribution()))

        return Drawn(axes.complete(fixed, value_of))

    def _frozen(self, trial: Restated, axes: Axes) -> Any:
        seen = trial.seen
        return frozen(
            seen.number,
            seen.state,
            trial.numbers,
            axes.distributions,
            seen.values if seen.state is TrialState.COMPLETE else None,
            dict([seen.last_report]) if seen.last_report else None,
        )
