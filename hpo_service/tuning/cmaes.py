"""CMA-ES by Optuna and cmaes: a normal distribution that moves and reshapes with every generation of trials.

system_attrs: {"cmaes": {"space", "generation", "told"?, "x"?, "sampled"?}}. Optuna keeps the optimizer as a pickle in
the trials; whoever can write to the database could then run code in the server. Here it is never unpickled: the trial
that closes a generation writes down which trials were `told`, and the optimizer is rebuilt by telling them again. `x`
is the point before it was put on the grid (with_margin). A round of a narrowed study begins a new distribution in its
own ranges.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hpo_service.domain.search_space import Params, Value
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, Axis
from hpo_service.tuning.drawing import DrawnParams, positions, short_seed
from hpo_service.tuning.optuna_study import AttrRecorder, InMemoryStudy, ResumedCmaEs, SearchSpaceTransform, frozen


class CmaEs:
    def __init__(self, seed: int, direction: str, options: Mapping[str, Any]) -> None:
        self._seed = seed
        self._direction = direction
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._startup = options.get("n_startup_trials", 1)
        self._options = {**options, "n_startup_trials": 0, "warn_independent_sampling": False}
        self._states = {TrialState.COMPLETE} | ({TrialState.PRUNED} if options.get("consider_pruned_trials") else set())
        self._all: dict[int, HistoryTrial] = {}
        self._axes: Axes | None = None
        self._forget()

    def _forget(self) -> None:
        self._finished: set[int] = set()
        self._generations: defaultdict[int, set[int]] = defaultdict(set)
        self._told: dict[int, list[int]] = {}  # by generation, as written down in a trial
        self._closed: dict[int, list[int]] = {}  # by generation, as told here from memory
        self._optimizer: Any = None

    def absorb(self, trial: HistoryTrial) -> None:
        before = self._all.get(trial.number)
        self._all[trial.number] = trial = replace(trial, reports=trial.reports[-1:])
        if before is not None and before.state.is_finished and before != trial:
            self._axes = None
        if self._axes is not None:
            self._place(trial, self._axes)

    def _restrict_to(self, axes: Axes) -> None:
        if axes is self._axes:
            return
        self._axes = axes
        self._forget()
        for trial in self._all.values():
            self._place(trial, axes)

    def _place(self, trial: HistoryTrial, axes: Axes) -> None:
        note = trial.system_attrs.get("cmaes", {})
        ours = note.get("space") == axes.digest
        if ours and "told" in note:
            self._told.setdefault(note["generation"] - 1, note["told"])
        if not (trial.state in self._states or trial.failed_in_training) or _value(trial) is None:
            return
        self._finished.add(trial.number)
        if ours and note.get("sampled", True) and axes.numbers_of(trial.params) is not None:
            self._generations[note["generation"]].add(trial.number)

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        self._restrict_to(axes)
        position = positions(self._seed, number)
        if not axes.variable or len(self._finished) < self._startup:
            return DrawnParams(axes.complete(fixed, lambda axis: axis.at(position())))
        joint = {axis.name: axes.distributions[axis.name] for axis in axes.variable}
        self._catch_up(axes, joint)
        sampler = ResumedCmaEs(seed=short_seed(self._seed, number), **self._options)
        sampler.optimizer = self._optimizer
        generation = self._optimizer.generation
        # Not enough to close this generation: `_catch_up` would have. So the sampler only asks.
        notes = AttrRecorder()
        study = InMemoryStudy([self._direction], [], notes=notes)
        drawn = sampler.sample_relative(study, frozen(number, TrialState.RUNNING, {}, {}), joint)

        def value_of(axis: Axis) -> Value:
            return axis.nearest(drawn[axis.name]) if axis.name in drawn else axis.at(position())

        note: dict[str, Any] = {"space": axes.digest, "generation": generation}
        if generation - 1 in self._closed and generation - 1 not in self._told:
            note["told"] = self._closed[generation - 1]
        if "x_for_tell" in notes.of_trial:
            note["x"] = notes.of_trial["x_for_tell"]
        if fixed:  # what an enqueue gave is no sample of the distribution
            note["sampled"] = False
        return DrawnParams(axes.complete(fixed, value_of), {"cmaes": note})

    def _catch_up(self, axes: Axes, joint: dict[str, Any]) -> None:
        """Tell the optimizer every generation that is closed, and the one that closes now."""
        with_margin = self._options.get("with_margin", False)
        transform = SearchSpaceTransform(joint, transform_step=not with_margin, transform_0_1=True)
        if self._optimizer is None:
            # By a separate sampler: this takes random numbers, and a restarted server does it at another draw.
            self._optimizer = ResumedCmaEs(seed=0, **self._options).new_optimizer(transform, self._direction)
        while (told := self._told.get(self._optimizer.generation)) is not None:
            self._tell(transform, axes, told)
        members = sorted(self._generations.get(self._optimizer.generation, ()))
        if len(members) >= self._optimizer.population_size:
            told = members[: self._optimizer.population_size]
            self._closed[self._optimizer.generation] = told
            self._tell(transform, axes, told)

    def _tell(self, transform: SearchSpaceTransform, axes: Axes, told: list[int]) -> None:
        solutions = []
        for number in told:
            trial = self._all[number]
            value = _value(trial)
            assert value is not None
            x = trial.system_attrs["cmaes"].get("x")
            point = np.array(x) if x is not None else transform.transform(axes.numbers_of(trial.params) or {})
            solutions.append((point, math.inf if math.isnan(value) else self._sign * value))
        self._optimizer.tell(solutions)


def _value(trial: HistoryTrial) -> float | None:
    """The value to tell; NaN for worse than any, None if there is none."""
    if trial.failed_in_training:
        return math.nan
    if trial.state is TrialState.PRUNED:
        return trial.reports[-1][1] if trial.reports else None
    return trial.values[0] if trial.values else None
