"""All trials of a study as a sampler keeps them: in columns by number, a few dozen bytes a trial.

A study may have 100,000 trials; each as an object with its params would take half a kilobyte. They are needed again
only when a round with other ranges begins, or when what was final has changed.
"""

from __future__ import annotations

import math
from array import array
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from hpo_service.domain.search_space import AnyParameter, CategoricalParameter, IntParameter, Params, SearchSpace, Value
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, Axis, ChoicePlaces, Continuous, Stepped, Whole

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ABSENT = math.nan
OUTSIDE = math.inf  # of every range: a value of a numeric parameter that is no number

# A trial that failed in training has a code of its own, after those of the states.
_STATES: tuple[TrialState, ...] = (*TrialState, TrialState.FAIL)
_CODES = {state: code for code, state in enumerate(TrialState, start=1)}
_FAILED_IN_TRAINING = len(_STATES)
NO_STEP = -(2**62)


class HistoryChange(Enum):
    """What putting a trial changes. NEWS: it is new, or was not finished; REVISED: it was finished, and differs now."""

    NOTHING = auto()
    NEWS = auto()
    REVISED = auto()


class PastTrials:
    def __init__(self, directions: int, space: SearchSpace) -> None:
        self._states = bytearray()
        self._values = [array("d") for _ in range(directions)]
        self._last_steps = array("q")
        self._last_values = array("d")
        self._columns = [Column(name, parameter) for name, parameter in space.items()]
        self._floats = [*(column.codes for column in self._columns), *self._values, self._last_values]

    def __len__(self) -> int:
        """One more than the highest number."""
        return len(self._states)

    def put(self, trial: HistoryTrial) -> HistoryChange:
        number = trial.number
        code = _FAILED_IN_TRAINING if trial.failed_in_training else _CODES[trial.state]
        row = [column.code(trial.params) for column in self._columns]
        row += (ABSENT,) * len(self._values) if trial.values is None else trial.values
        step, value = trial.reports[-1] if trial.reports else (NO_STEP, ABSENT)
        row.append(value)
        if number >= len(self._states):
            self._extend(number + 1 - len(self._states))
        before = self._states[number]
        if before == code and step == self._last_steps[number] and self._is(number, row):
            return HistoryChange.NOTHING
        self._states[number] = code
        self._last_steps[number] = step
        for column, entry in zip(self._floats, row, strict=True):
            column[number] = entry
        return HistoryChange.REVISED if before and _STATES[before - 1].is_finished else HistoryChange.NEWS

    def _is(self, number: int, row: list[float]) -> bool:
        return all(
            (known := column[number]) == entry or (known != known and entry != entry)
            for column, entry in zip(self._floats, row, strict=True)
        )

    def _extend(self, by: int) -> None:
        self._states.extend(bytes(by))
        self._last_steps.extend([NO_STEP] * by)
        for column in self._floats:
            column.extend([ABSENT] * by)

    def __getitem__(self, number: int) -> HistoryTrial:
        """The trial, with only the last of its reports."""
        last = self.last_report(number)
        reports = () if last is None else (last,)
        failed = self._states[number] == _FAILED_IN_TRAINING
        return HistoryTrial(
            number, self.state(number), self.params(number), self.values(number), reports, failed_in_training=failed
        )

    def state(self, number: int) -> TrialState:
        return _STATES[self._states[number] - 1]

    def values(self, number: int) -> tuple[float, ...] | None:
        told = tuple(column[number] for column in self._values)
        return None if all(map(math.isnan, told)) else told

    def last_report(self, number: int) -> tuple[int, float] | None:
        step = self._last_steps[number]
        return None if step == NO_STEP else (step, self._last_values[number])

    def params(self, number: int) -> Params:
        return {
            column.name: column.value(code) for column in self._columns if not math.isnan(code := column.codes[number])
        }

    # -- all of them, as arrays (T,) ----------------------------------------------------------------------

    def are(self, *states: TrialState) -> Bools:
        codes = np.frombuffer(self._states, dtype=np.uint8)
        return np.isin(codes, [_CODES[state] for state in states])

    def have_failed_in_training(self) -> Bools:
        failed: Bools = np.frombuffer(self._states, dtype=np.uint8) == _FAILED_IN_TRAINING
        return failed

    def told(self) -> Floats:
        """Each trial's value in the first direction, NaN where it has none."""
        return np.array(self._values[0])

    def last_reports(self) -> tuple[Integers, Floats]:
        return np.array(self._last_steps, dtype=np.int64), np.array(self._last_values)

    def are_inside(self, axes: Axes) -> Bools:
        """Whether no param of a trial lies outside the ranges of the round."""
        inside = np.ones(len(self), dtype=np.bool_)
        for column in self._columns:
            if column.name in axes.round_names:
                inside &= column.are_inside(axes[column.name])
        return inside


class Column:
    """One parameter of all trials: its value, or the number of the choice, or ABSENT, or OUTSIDE."""

    def __init__(self, name: str, parameter: AnyParameter) -> None:
        self.name = name
        self.codes = array("d")
        self._whole = isinstance(parameter, IntParameter)
        self._choices: list[Value] | None = None
        if isinstance(parameter, CategoricalParameter):
            self._choices = list(parameter.choices)
            self._places = ChoicePlaces(self._choices)

    def code(self, params: Params) -> float:
        if self.name not in params:
            return ABSENT
        value = params[self.name]
        if self._choices is None:
            return OUTSIDE if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
        place = self._places.add(value)
        if place == len(self._choices):
            self._choices.append(value)
        return float(place)

    def value(self, code: float) -> Value:
        if self._choices is not None:
            return self._choices[int(code)]
        return int(code) if self._whole and code.is_integer() else code

    def are_inside(self, axis: Axis) -> Bools:
        """(T,): where the value lies in the range, or there is none."""
        codes = np.array(self.codes)
        if self._choices is None:
            assert isinstance(axis, Continuous | Stepped | Whole)
            return ~((codes < axis.low) | (codes > axis.high))
        known = np.array([axis.number_of(choice) is not None for choice in self._choices])
        absent = np.isnan(codes)
        inside: Bools = absent | known[np.where(absent, 0, codes).astype(np.intp)]
        return inside
