"""NSGA-II by Optuna: generations of trials, each bred from the best of the two before.

system_attrs: {"nsgaii": {"space", "generation", "parents"?}}. `space` tells the rounds of a narrowed study apart: a
round begins with a generation 0 that consists of the earlier trials inside its ranges, and of imported ones. `parents`
(of this generation) are written down by the trial that needed them first, since every later one must have the same.

Optuna gets only the two generations that it looks at, and their parents, not the whole study.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial

from hpo_service.domain.search_space import Params, Value
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, Axis
from hpo_service.tuning.drawing import DrawnParams, positions, short_seed
from hpo_service.tuning.optuna_study import AttrRecorder, InMemoryStudy, frozen

_GENERATION = "NSGAIISampler:generation"
_PARENTS = "NSGAIISampler:parent:"


class Nsga2:
    def __init__(self, seed: int, directions: Sequence[str], options: Mapping[str, Any]) -> None:
        self._seed = seed
        self._directions = directions
        self._options = dict(options)
        self._population = self._options.get("population_size", 50)
        # The values of a trial that failed in training.
        self._worst = [math.inf if direction == "minimize" else -math.inf for direction in directions]
        self._all: dict[int, HistoryTrial] = {}
        self._axes: Axes | None = None
        self._generations: defaultdict[int, dict[int, FrozenTrial]] = defaultdict(dict)
        self._parents: dict[int, list[int]] = {}

    def absorb(self, trial: HistoryTrial) -> None:
        before = self._all.get(trial.number)
        self._all[trial.number] = trial = replace(trial, reports=())
        if before is not None and before.state.is_finished and before != trial:
            self._axes = None
        if self._axes is not None:
            self._place(trial, self._axes)

    def _restrict_to(self, axes: Axes) -> None:
        if axes is self._axes:
            return
        self._axes = axes
        self._generations.clear()
        self._parents.clear()
        for number in sorted(self._all):
            self._place(self._all[number], axes)

    def _place(self, trial: HistoryTrial, axes: Axes) -> None:
        note = trial.system_attrs.get("nsgaii", {})
        ours = note.get("space") == axes.digest
        generation = note["generation"] if ours else 0
        if ours and "parents" in note:
            self._parents.setdefault(generation, note["parents"])
        if trial.failed_in_training:
            values: Sequence[float] | None = self._worst
        else:
            values = trial.values if trial.state is TrialState.COMPLETE else None
        if not values:
            return
        numbers = axes.numbers_of(trial.params)
        if numbers is None or any(axis.name not in numbers for axis in axes.always):
            return
        self._generations[generation][trial.number] = frozen(
            trial.number,
            TrialState.COMPLETE,
            numbers,
            axes.distributions,
            values,
            system_attrs={_GENERATION: generation},
        )

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        self._restrict_to(axes)
        latest = max(self._generations, default=0)
        full = len(self._generations.get(latest, ())) >= self._population
        generation = latest + 1 if full else latest
        notes = AttrRecorder(
            {f"{_PARENTS}{of}": self._parents[of] for of in (generation - 1, generation) if of in self._parents}
        )
        study = InMemoryStudy(self._directions, self._shown(generation), notes=notes)
        now = frozen(number, TrialState.RUNNING, {}, {}, system_attrs={_GENERATION: generation})
        sampler = NSGAIISampler(seed=short_seed(self._seed, number), **self._options)
        joint = {axis.name: axes.distributions[axis.name] for axis in axes.variable}
        drawn = sampler.sample_relative(study, now, joint) if joint else {}
        position = positions(self._seed, number)

        def value_of(axis: Axis) -> Value:
            return axis.nearest(drawn[axis.name]) if axis.name in drawn else axis.at(position())

        note: dict[str, Any] = {"space": axes.digest, "generation": generation}
        if f"{_PARENTS}{generation}" in notes.of_study:
            note["parents"] = notes.of_study[f"{_PARENTS}{generation}"]
        return DrawnParams(axes.complete(fixed, value_of), {"nsgaii": note})

    def _shown(self, generation: int) -> list[FrozenTrial]:
        shown: dict[int, FrozenTrial] = {}
        wanted = {number for of in (generation - 1, generation) for number in self._parents.get(of, ())}
        for of, members in self._generations.items():
            if of in (generation - 1, generation):
                shown.update(members)
            else:
                shown.update({number: members[number] for number in wanted & members.keys()})
        return [shown[number] for number in sorted(shown)]
