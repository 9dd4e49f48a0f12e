"""TPE: draw where the good trials are dense and the bad ones (all others) are not, on a bounded history.

With one direction by the mixtures of parzen.py, ten to a hundred times faster than Optuna's sampler and to the same
rules; with several directions, or `group`, by Optuna's sampler on the same history.
Running trials, and those that wait to be given out again, count as bad (a constant liar): they repel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from hpo_service.domain.search_space import Params, SearchSpace, Value
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, Axis
from hpo_service.tuning.bad_trials import BadTrials
from hpo_service.tuning.bounded_history import FAILED, FOR_MIXTURES, FOR_OPTUNA, MOST_GOOD, BoundedHistory, Key
from hpo_service.tuning.drawing import DrawnParams, Sampler, positions, short_seed, uniforms
from hpo_service.tuning.optuna_study import WORSE_THAN_ANY, InMemoryStudy, frozen, tpe_with_n_good
from hpo_service.tuning.parzen import Coordinate, Coordinates, Mixture
from hpo_service.tuning.past_trials import ABSENT

# Candidates nearer than this count as equal: how a sum rounds depends on the machine, and the draw shall not.
_NEAR = 1e-4
# The hypervolume of 25 trials in ten directions takes six seconds, of 12 a tenth of one.
_FEW_DIRECTIONS = 7
MOST_GOOD_OF_MANY = 12
# A mixture that lags behind by more changes, since its axes were not drawn together, is dropped and made anew.
_STALE = 128


class Tpe:
    def __init__(
        self,
        seed: int,
        direction: str,
        space: SearchSpace,
        *,
        n_startup_trials: int = 10,
        n_ei_candidates: int = 24,
        multivariate: bool | None = None,
        constant_liar: bool = True,
        group: bool = False,
    ) -> None:
        assert not group, "left to OptunaTpe"
        self._seed = seed
        self._startup = n_startup_trials
        self._candidates = n_ei_candidates
        self._jointly = multivariate is not False
        self._liar = constant_liar
        self._history = BoundedHistory([direction], space, FOR_MIXTURES)
        self._split: GoodBadSplit | None = None

    def absorb(self, trial: HistoryTrial) -> None:
        self._history.absorb(trial)

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        if self._history.restrict_to(axes):
            self._split = None
        if self._history.finished < self._startup:
            position = positions(self._seed, number)
            return DrawnParams(axes.complete(fixed, lambda axis: axis.at(position())))
        if self._split is None:
            self._split = GoodBadSplit(axes, self._history, self._liar)
        split = self._split
        split.catch_up()
        together = [axis.name for axis in axes.variable if axis.name not in fixed] if self._jointly else []
        drawn = self._draw(number, split, together) if together else {}

        def value_of(axis: Axis) -> Value:
            if axis.size == 1:
                return axis.point(0)
            if axis.name in drawn:
                return drawn[axis.name]
            return self._draw(number, split, [axis.name])[axis.name]

        return DrawnParams(axes.complete(fixed, value_of))

    def _draw(self, number: int, split: GoodBadSplit, names: Sequence[str]) -> dict[str, Value]:
        """Of some candidates from the good mixture, the one with the highest ratio of good to bad density."""
        on = split.on(names)
        best, rest = split.good_mixture(on), split.bad_mixture(on)
        shape = (1 + len(names), self._candidates)
        uniform = uniforms(shape[0] * shape[1], self._seed, number, names[0]).reshape(shape)
        candidates = best.sample(uniform)
        features = on.features(candidates)
        advantage = (best.density(candidates, features) / rest.density(candidates, features)).tolist()
        enough = max(advantage) * (1 - _NEAR)
        first = next((k for k, each in enumerate(advantage) if each >= enough), 0)
        return on.values(candidates[:, first])


class GoodBadSplit:
    """The good and the bad trials in one round's ranges: their places on its axes, and their mixtures."""

    def __init__(self, axes: Axes, history: BoundedHistory, with_running: bool) -> None:
        self._axes = axes
        self._history = history
        self._with_running = with_running
        names = [name for name in axes.round_names if axes[name].size != 1]
        self._coordinates = {name: Coordinate.of(axes[name]) for name in names}
        self._rows = {name: row for row, name in enumerate(names)}
        self._best: list[Key] = []
        self._good: dict[int, list[float]] = {}
        self._bad: dict[int, list[float]] = {}
        self._on: dict[tuple[str, ...], Coordinates] = {}
        self._good_mixtures: dict[Coordinates, Mixture] = {}
        self._fitted: set[Coordinates] = set()  # those whose good mixture is up to date
        self._bad_mixtures: dict[Coordinates, BadTrials] = {}

    def catch_up(self) -> None:
        """Sort the trials that have changed since the last time into the good and the bad ones."""
        history = self._history
        touched = history.touched
        best = history.best(min(math.ceil(0.1 * history.finished), MOST_GOOD))
        best = [key for key in best if key[0] != FAILED]
        if best != self._best:
            self._best = best
            numbers = sorted(key[3] for key in best)
            touched.update(self._good.keys() ^ numbers)
            self._good = {number: self._good.get(number) or self._places(number) for number in numbers}
            self._fitted.clear()
        for number in touched:
            if number in self._good or not history.keeps(number, self._with_running):
                self._bad.pop(number, None)
            elif number not in self._bad:
                self._bad[number] = self._places(number)
        for on, bad in list(self._bad_mixtures.items()):
            bad.stale |= touched
            if len(bad.stale) > _STALE:
                del self._bad_mixtures[on]
                self._good_mixtures.pop(on, None)
        touched.clear()

    def _places(self, number: int) -> list[float]:
        numbers = self._axes.numbers_of(self._history.past.params(number))
        assert numbers is not None
        return [each.place(numbers[name]) if name in numbers else ABSENT for name, each in self._coordinates.items()]

    def on(self, names: Sequence[str]) -> Coordinates:
        key = tuple(names)
        if key not in self._on:
            self._on[key] = Coordinates([self._coordinates[name] for name in key], [self._rows[name] for name in key])
        return self._on[key]

    def good_mixture(self, on: Coordinates) -> Mixture:
        mixture = self._good_mixtures.get(on)
        if mixture is None:
            mixture = self._good_mixtures[on] = Mixture(on)
        elif on in self._fitted:
            return mixture
        self._fitted.add(on)
        having = [on.of(places) for places in self._good.values() if on.has(places)]
        return mixture.fit(np.array(having).reshape(-1, len(on.each)).T)

    def bad_mixture(self, on: Coordinates) -> Mixture:
        """The bad trials' mixture; sampled ones weigh more, so that the total is the weight of all trials."""
        if on not in self._bad_mixtures:
            self._bad_mixtures[on] = BadTrials(on)
            self._bad_mixtures[on].stale.update(self._bad)
        bad = self._bad_mixtures[on]
        for number in sorted(bad.stale):
            places = self._bad.get(number)
            if places is not None and on.has(places):
                bad.put(number, on.of(places), self._history.is_sampled(number))
            else:
                bad.drop(number)
        bad.stale.clear()
        return bad.mixture(self._history.sample_weight)


class OptunaTpe:
    def __init__(self, seed: int, directions: Sequence[str], space: SearchSpace, options: Mapping[str, Any]) -> None:
        self._seed = seed
        self._directions = directions
        self._options = dict(options)
        if options.get("group"):
            self._options["multivariate"] = True  # with several directions Optuna requires it to be set
        self._history = BoundedHistory(directions, space, FOR_OPTUNA)

    def absorb(self, trial: HistoryTrial) -> None:
        self._history.absorb(trial)

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        history = self._history
        history.restrict_to(axes)
        # Optuna counts a tenth of the trials it sees as good; it sees a part of them.
        most = MOST_GOOD if len(self._directions) <= _FEW_DIRECTIONS else MOST_GOOD_OF_MANY
        good = min(math.ceil(0.1 * history.finished), most)
        sampler = tpe_with_n_good(good, seed=short_seed(self._seed, number), **self._options)
        numbers = [*history.finished_numbers(), *history.running_numbers()]
        study = InMemoryStudy(self._directions, [_frozen(history.past[each], axes) for each in numbers])
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

        return DrawnParams(axes.complete(fixed, value_of))


def _frozen(trial: HistoryTrial, axes: Axes) -> FrozenTrial:
    numbers = axes.numbers_of(trial.params)
    assert numbers is not None
    if trial.failed_in_training:
        return frozen(trial.number, TrialState.PRUNED, numbers, axes.distributions, system_attrs=WORSE_THAN_ANY)
    values = trial.values if trial.state is TrialState.COMPLETE else None
    return frozen(trial.number, trial.state, numbers, axes.distributions, values, dict(trial.reports))


def tpe(seed: int, directions: Sequence[str], space: SearchSpace, options: Mapping[str, Any]) -> Sampler:
    if len(directions) > 1 or options.get("group"):
        return OptunaTpe(seed, directions, space, options)
    return Tpe(seed, directions[0], space, **options)
