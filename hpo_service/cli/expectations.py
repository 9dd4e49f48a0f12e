"""Compares what a study has measured with what was expected: a row for each item of `metadata.figure.expected`."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo_service.cli import wording
from hpo_service.cli.figure import OF_TEST, Expected, Figure, Take
from hpo_service.domain.json_types import Json

WIDTH = 110  # of a claim's lines


@dataclass(frozen=True)
class MeasuredExpectation:
    """One expectation, and the values that were measured for it; diverged: trials whose loss did not stay finite."""

    expected: Expected
    values: Sequence[float]
    diverged: int = 0

    @property
    def what(self) -> str:
        expected = self.expected
        words = _WORDS.get(expected.measure) or expected.measure
        if expected.threshold is not None:
            words = f"{_THRESHOLDS[expected.take]} {wording.number(expected.threshold)}, {words}"
        elif expected.take != "mean":
            words = f"{expected.take} {words}"
        if expected.best is not None:
            words += f" of the best {expected.best}"
        parts = [words, *(f"{name} {wording.number(value)}" for name, value in expected.of.items())]
        if expected.round is not None:
            parts.append(f"round {expected.round}")
        return ", ".join(parts)

    @property
    def measured(self) -> float | None:
        """None where nothing was measured."""
        if not self.values and not (self.diverged and self.expected.take == "below"):
            return None
        return _TAKES[self.expected.take](self)

    @property
    def shown(self) -> str:
        if self.measured is None:
            return "not measured"
        number = self._number(self.measured)
        if self.expected.take != "mean" or len(self.values) < 2:
            return number
        return f"{number} [{self._number(min(self.values))}, {self._number(max(self.values))}]"

    @property
    def reference(self) -> str:
        numbers = [self._number(number) for number in self.expected.reference]
        if len(numbers) == 2:
            return " … ".join(numbers)
        return numbers[0] + (f" [{numbers[1]}, {numbers[2]}]" if len(numbers) == 3 else "")

    @property
    def is_within(self) -> bool | None:
        """Whether the measured number lies in the reference's range; None where one of the two is missing."""
        if self.measured is None or self.expected.range is None:
            return None
        lowest, highest = self.expected.range
        return lowest <= round(self.measured, DIGITS) <= highest

    def _number(self, value: float) -> str:
        """Counts whole, accuracies like 0.756, and 3.2e-5 where three digits would show nothing."""
        if self.expected.take in COUNTS:
            return f"{value:g}"
        return f"{value:.{DIGITS}f}" if value == 0 or abs(value) >= 10**-DIGITS else wording.number(value, 2)


DIGITS = 3
COUNTS = ("below", "above")

_WORDS: Mapping[str, str] = {
    "training_accuracy": "training accuracy",
    "validation_accuracy": "validation accuracy",
    "gap": "training minus validation accuracy",
    "test_accuracy": "test accuracy",
    "member_test_accuracy": "test accuracy of one network alone",
}

_THRESHOLDS: Mapping[str, str] = {"below": "trials below", "above": "trials above", "share_above": "share above"}
_TAKES: Mapping[Take, Callable[[MeasuredExpectation], float]] = {
    "mean": lambda row: statistics.fmean(row.values),
    "median": lambda row: statistics.median(row.values),
    "highest": lambda row: max(row.values),
    "lowest": lambda row: min(row.values),
    # a trial that diverged has learned nothing, and counts as below
    "below": lambda row: sum(value < _threshold(row) for value in row.values) + row.diverged,
    "above": lambda row: sum(value > _threshold(row) for value in row.values),
    "share_above": lambda row: sum(value > _threshold(row) for value in row.values) / len(row.values),
}


def _threshold(row: MeasuredExpectation) -> float:
    assert row.expected.threshold is not None
    return row.expected.threshold


def rows(figure: Figure, study: Json, trials: Sequence[Json]) -> list[MeasuredExpectation]:
    """trials: all of the study's."""
    return [_row(expected, study, trials) for expected in figure.expected]


def _row(expected: Expected, study: Json, trials: Sequence[Json]) -> MeasuredExpectation:
    if expected.measure in OF_TEST:
        return MeasuredExpectation(expected, list(_of_test(expected.measure, study.get("test") or {})))
    chosen = [trial for trial in trials if has_params(trial, expected.of)]
    if expected.round is not None:
        chosen = [trial for trial in chosen if trial["round"] == expected.round]
    complete = [trial for trial in chosen if trial["state"] == "COMPLETE"]
    if expected.best is not None:
        sign = -1 if study["directions"][0] == "maximize" else 1
        complete = sorted(complete, key=lambda trial: sign * float(trial["values"][0]))[: expected.best]
    measured = (_of_trial(expected.measure, trial) for trial in complete)
    values = [value for value in measured if value is not None]
    return MeasuredExpectation(expected, values, sum(trial["reason"] == "diverged" for trial in chosen))


def has_params(trial: Json, params: Mapping[str, Any]) -> bool:
    return all(name in trial["params"] and same(trial["params"][name], value) for name, value in params.items())


def same(one: object, other: object) -> bool:
    """Equality in which true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _of_test(measure: str, test: Json) -> Iterator[float]:
    if test.get("state") != "COMPLETE":
        return
    if measure == "test_accuracy":
        yield test["test_accuracy"]
    else:
        yield from (member["test_accuracy"] for member in test["members"])


def _of_trial(measure: str, trial: Json) -> float | None:
    """A number, or None for a trial that has not measured it."""
    if measure in trial["params"]:
        found = trial["params"][measure]
    elif measure in ("value", "validation_accuracy"):
        found = trial["values"][0]
    else:
        metrics = (trial["reports"][-1]["metrics"] or {}) if trial["reports"] else {}
        found = metrics.get("train_accuracy")
        if measure == "gap" and found is not None:
            found -= float(trial["values"][0])
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def compared(figure: Figure, found: Sequence[MeasuredExpectation]) -> Iterator[str]:
    """The claim, and below it the table: what, measured, reference, within."""
    if figure.claim:
        yield from textwrap.wrap(figure.claim, WIDTH)
    if not found:
        return
    table = [("", "measured", figure.source, "within")]
    table += [(row.what, row.shown, row.reference, _WITHIN[row.is_within]) for row in found]
    yield from wording.columns(table)
    measured = [row for row in found if row.is_within is not None]
    if measured:
        inside = sum(bool(row.is_within) for row in measured)
        yield f"{inside} of {len(measured)} lie within the range of the reference."


_WITHIN: Mapping[bool | None, str] = {True: "yes", False: "no", None: ""}
