"""Gaussian-process search by Optuna, on a bounded history: fitting costs the cube of the number of trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.samplers import GPSampler

from hpo_service.domain.search_space import Params, SearchSpace, Value
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, Axis
from hpo_service.tuning.bounded_history import FOR_OPTUNA, BoundedHistory
from hpo_service.tuning.drawing import Drawn, positions, short_seed
from hpo_service.tuning.optuna_study import StudyInMemory, frozen


class GaussianProcess:
    def __init__(self, seed: int, directions: Sequence[str], space: SearchSpace, options: Mapping[str, Any]) -> None:
        self._seed = seed
        self._directions = directions
        self._startup = options.get("n_startup_trials", 10)
        self._options = {**options, "n_startup_trials": 0, "warn_independent_sampling": False}
        self._history = BoundedHistory(directions, space, FOR_OPTUNA)

    def absorb(self, trial: HistoryTrial) -> None:
        self._history.absorb(trial)

    def draw(self, number: int, axes: Axes, fixed: Params) -> Drawn:
        self._history.enter(axes)
        joint = {axis.name: axes.distributions[axis.name] for axis in axes.variable}
        past = [
            frozen(trial.number, trial.state, restated.numbers, axes.distributions, trial.values)
            for restated in [*self._history.trials(), *self._history.running()]
            if joint.keys() <= restated.numbers.keys() and (trial := restated.trial).state is not TrialState.PRUNED
        ]
        complete = sum(trial.values is not None for trial in past)
        drawn: dict[str, Any] = {}
        if joint and complete >= max(self._startup, 1):
            # A new sampler for each draw: one that remembers its last fit would draw otherwise after a restart.
            sampler = GPSampler(seed=short_seed(self._seed, number), **self._options)
            study = StudyInMemory(self._directions, past)
            drawn = sampler.sample_relative(study, frozen(number, TrialState.RUNNING, {}, {}), joint)
        position = positions(self._seed, number)

        def value_of(axis: Axis) -> Value:
            return axis.nearest(drawn[axis.name]) if axis.name in drawn else axis.at(position())

        return Drawn(axes.complete(fixed, value_of))
