"""The pruners by name: they decide as Optuna's do, at a cost that does not grow with the study.

Optuna's pruners look through all trials at every report, and through all reports of the trial. These update what the
decision needs as trials come in: per step, or per rung, the values in order; and a `Curve` keeps what is needed of its
reports. The tests compare every decision with that of the Optuna class.

The resources of hyperband must be given: Optuna's "auto" takes them from the first trials that finish, and takes
others after a restart. Halving begins at the first report where none is given, and then counts reports, not steps.
"""

from __future__ import annotations

import binascii
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from hpo_service.domain.curve import Curve
from hpo_service.domain.errors import Fault
from hpo_service.domain.measure import from_json, to_json
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.algorithm_options import (
    ANY_NUMBER,
    AT_LEAST_ZERO,
    Option,
    Options,
    faults,
    integer,
    number,
    or_null,
)
from hpo_service.tuning.signed_ranks import PairedTest
from hpo_service.tuning.sorted_values import SortedValues


@dataclass(frozen=True)
class Verdict:
    """system_attrs: JSON to be kept with the trial, which the next verdicts count on."""

    prune: bool
    system_attrs: dict[str, Any] = field(default_factory=dict)


KEEP = Verdict(prune=False)
PRUNE = Verdict(prune=True)


class Pruner(Protocol):
    def absorb(self, trial: HistoryTrial) -> None:
        """Take note of a new or changed trial."""

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        """Whether trial `number` shall end at its latest step.

        new: the steps that have been reported since it was last judged, or nothing if that is not known.
        """


class NoPruner:
    def absorb(self, trial: HistoryTrial) -> None:
        pass

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        return KEEP


@dataclass(frozen=True)
class PruningSteps:
    """At which steps a verdict is due: from `warmup` on, at the first report in each interval."""

    warmup: int
    interval: int

    def is_due(self, reports: Curve) -> bool:
        step, _ = reports.last
        if step < self.warmup:
            return False
        begins = (step - self.warmup) // self.interval * self.interval + self.warmup
        before = reports.step_before_the_last
        return (-1 if before is None else before) < begins


class PercentilePruner:
    """Ends a trial whose best report is worse than the percentile of what COMPLETE trials reported at this step."""

    def __init__(
        self,
        maximize: bool,
        percentile: float,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        n_min_trials: int = 1,
    ) -> None:
        self._sign = -1.0 if maximize else 1.0
        self._percentile = percentile
        self._startup = max(n_startup_trials, 1)
        self._steps = PruningSteps(n_warmup_steps, interval_steps)
        self._fewest = n_min_trials
        self._counted = bytearray()  # by trial number
        self._complete = 0
        self._losses: defaultdict[int, SortedValues] = defaultdict(SortedValues)
        self._nans: defaultdict[int, int] = defaultdict(int)

    def absorb(self, trial: HistoryTrial) -> None:
        if trial.state is not TrialState.COMPLETE:
            return
        self._counted.extend(bytes(max(0, trial.number + 1 - len(self._counted))))
        if self._counted[trial.number]:
            return
        self._counted[trial.number] = 1
        self._complete += 1
        for step, value in trial.reports:
            if math.isnan(value):
                self._nans[step] += 1
            else:
                self._losses[step].add(self._sign * value)

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        if not reports or self._complete < self._startup or not self._steps.is_due(reports):
            return KEEP
        best = reports.lowest_loss(self._sign)
        if best is None:
            return PRUNE
        step, _ = reports.last
        others = self._losses.get(step)
        if others is None or len(others) + self._nans.get(step, 0) < self._fewest:
            return KEEP
        return PRUNE if best > others.percentile(self._percentile) else KEEP


class HalvingPruner:
    """Asynchronous successive halving (Li et al., 2020): at each rung the best 1/reduction_factor go on.

    system_attrs: {"completed_rung_0": the value at that rung, …}, Optuna's words.
    """

    def __init__(
        self,
        maximize: bool,
        min_resource: int | None = None,
        reduction_factor: int = 4,
        min_early_stopping_rate: int = 0,
        bootstrap_count: int = 0,
    ) -> None:
        self._sign = -1.0 if maximize else 1.0
        self._first = min_resource
        self._factor = reduction_factor
        self._rate = min_early_stopping_rate
        self._bootstrap = bootstrap_count
        self._rungs: defaultdict[int, SortedValues] = defaultdict(SortedValues)
        self._of_trial: dict[int, tuple[float, ...]] = {}

    def absorb(self, trial: HistoryTrial) -> None:
        values: list[float] = []
        while (told := trial.system_attrs.get(f"completed_rung_{len(values)}")) is not None:
            values.append(from_json(told))
        before = self._of_trial.get(trial.number, ())
        if before == tuple(values):
            return
        for rung, value in enumerate(before):
            self._rungs[rung].remove(self._sign * value)
        for rung, value in enumerate(values):
            self._rungs[rung].add(self._sign * value)
        self._of_trial[trial.number] = tuple(values)

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        if not reports:
            return KEEP
        step, value = reports.last
        resource = step if self._first is not None else len(reports)
        # A rung that only an earlier attempt completed does not count for this one, which began anew.
        mine = self._of_trial.get(number, ())
        rung = next((k for k, done in enumerate(mine) if not reports.holds(done)), len(mine))
        attrs: dict[str, Any] = {}
        while resource >= (self._first or 1) * self._factor ** (self._rate + rung):
            if math.isnan(value):
                return Verdict(True, attrs)
            attrs[f"completed_rung_{rung}"] = to_json(value)
            if not self._goes_on(rung, self._sign * value, mine):
                return Verdict(True, attrs)
            rung += 1
        return Verdict(False, attrs)

    def _goes_on(self, rung: int, loss: float, mine: tuple[float, ...]) -> bool:
        others = self._rungs.get(rung)
        count = 1 if others is None else len(others) + 1
        better = 0 if others is None else others.below(loss)
        if rung < len(mine):  # what an earlier attempt left here
            count -= 1
            better -= self._sign * mine[rung] < loss
        if count <= self._bootstrap:
            return False
        # No trial can be suspended until others come: of the first few the best one goes on.
        return better <= max(count // self._factor - 1, 0)


class HyperbandPruner:
    """Several brackets of successive halving (Li et al., 2018); a trial's bracket follows from its number."""

    def __init__(
        self,
        maximize: bool,
        study: str,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 3,
        bootstrap_count: int = 0,
    ) -> None:
        self._study = study
        brackets = math.floor(math.log(max_resource / min_resource, reduction_factor)) + 1
        # How many trials each bracket gets, in proportion.
        shares = (
            math.ceil(brackets * reduction_factor ** (brackets - 1 - k) / (brackets - k)) for k in range(brackets)
        )
        self._ends = list(accumulate(shares))
        self._brackets = [
            HalvingPruner(maximize, min_resource, reduction_factor, k, bootstrap_count) for k in range(brackets)
        ]

    def _bracket(self, number: int) -> HalvingPruner:
        lot = binascii.crc32(f"{self._study}_{number}".encode()) % self._ends[-1]
        return self._brackets[bisect_right(self._ends, lot)]

    def absorb(self, trial: HistoryTrial) -> None:
        self._bracket(trial.number).absorb(trial)

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        return self._bracket(number).judge(number, reports, new)


class PatientPruner:
    """Ends a trial that has not improved for `patience` steps; with a wrapped pruner, only if that one agrees."""

    def __init__(self, maximize: bool, patience: int, min_delta: float, wrapped: Pruner | None) -> None:
        self._sign = -1.0 if maximize else 1.0
        self._patience = patience
        self._min_delta = min_delta
        self._wrapped = wrapped

    def absorb(self, trial: HistoryTrial) -> None:
        if self._wrapped is not None:
            self._wrapped.absorb(trial)

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        turn = len(reports) - self._patience - 1
        if turn <= 0:
            return KEEP
        before, after = reports.lowest_loss(self._sign, 0, turn), reports.lowest_loss(self._sign, turn)
        if before is None or after is None or not before + self._min_delta < after:
            return KEEP
        return PRUNE if self._wrapped is None else self._wrapped.judge(number, reports, new)


class ThresholdPruner:
    """Ends a trial whose report leaves the given bounds, or is NaN."""

    def __init__(
        self,
        lower: float | None = None,
        upper: float | None = None,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
    ) -> None:
        self._lower = -math.inf if lower is None else lower
        self._upper = math.inf if upper is None else upper
        self._steps = PruningSteps(n_warmup_steps, interval_steps)

    def absorb(self, trial: HistoryTrial) -> None:
        pass

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        if not reports or not self._steps.is_due(reports):
            return KEEP
        return KEEP if self._lower <= reports.last[1] <= self._upper else PRUNE


class WilcoxonPruner:
    """Ends a trial that a signed-rank test finds worse than the best one; steps are problem instances."""

    def __init__(self, maximize: bool, p_threshold: float = 0.1, n_startup_steps: int = 2) -> None:
        self._sign = -1.0 if maximize else 1.0
        self._p = p_threshold
        self._startup = max(2, n_startup_steps)
        self._best: tuple[float, int] | None = None
        self._best_reports: dict[int, float] = {}
        self._best_is_finite = True
        self._best_mean = 0.0
        self._tests: dict[int, PairedTest] = {}  # of the trials that run

    def absorb(self, trial: HistoryTrial) -> None:
        if not trial.state.is_finished:
            return
        self._tests.pop(trial.number, None)
        if trial.state is not TrialState.COMPLETE or not trial.values:
            return
        rank = self._sign * trial.values[0], trial.number
        if self._best is None or rank < self._best:
            self._best = rank
            self._best_reports = dict(trial.reports)
            self._best_is_finite = all(map(math.isfinite, self._best_reports.values()))
            self._best_mean = sum(self._best_reports.values()) / max(len(self._best_reports), 1)

    def judge(self, number: int, reports: Curve, new: Collection[int]) -> Verdict:
        if not self._best_is_finite:
            return KEEP
        test = self._test(number, reports, new)
        if not test.is_finite or test.pairs < self._startup:
            return KEEP
        # A best trial that is no better on average proves nothing.
        if not self._sign * self._best_mean < self._sign * test.mean:
            return KEEP
        return PRUNE if test.p_of_worse() < self._p else KEEP

    def _test(self, number: int, reports: Curve, new: Collection[int]) -> PairedTest:
        test = self._tests.get(number)
        follows = test is not None and test.reports is reports and test.best is self._best_reports
        if test is None or not follows or not test.follow(new):
            test = self._tests[number] = PairedTest(self._sign, self._best_reports, reports)
        return test


@dataclass(frozen=True)
class PrunerKind:
    make: Callable[[StudySpec, Mapping[str, Any]], Pruner]
    options: Options
    rules: Callable[[Mapping[str, Any], str], list[Fault]] = lambda params, place: []


_INTERVALS = {"n_warmup_steps": integer(0), "interval_steps": integer(1)}
_PERCENTILE = {"n_startup_trials": integer(0), **_INTERVALS, "n_min_trials": integer(1)}
_PRUNER = Option(
    'a pruner as {"name": …, "params": {…}}',
    lambda value: (
        isinstance(value, dict)
        and {"name"} <= set(value) <= {"name", "params"}
        and isinstance(value["name"], str)
        and isinstance(value.get("params", {}), dict)
    ),
)


def _threshold_rules(params: Mapping[str, Any], place: str) -> list[Fault]:
    lower, upper = params.get("lower"), params.get("upper")
    if lower is None and upper is None:
        return [Fault(place, "threshold needs lower, upper or both")]
    if lower is not None and upper is not None and lower > upper:
        return [Fault(f"{place}/upper", f"upper ({upper:g}) is below lower ({lower:g})")]
    return []


def _hyperband_rules(params: Mapping[str, Any], place: str) -> list[Fault]:
    low, high = params.get("min_resource", 1), params["max_resource"]
    if high >= low:
        return []
    return [Fault(f"{place}/max_resource", f"max_resource ({high}) is below min_resource ({low})")]


def _patient_rules(params: Mapping[str, Any], place: str) -> list[Fault]:
    wrapped = params.get("wrapped")
    if wrapped is None:
        return []
    if wrapped["name"] == "patient":
        return [Fault(f"{place}/wrapped/name", "patient cannot wrap patient")]
    return pruner_faults(wrapped["name"], wrapped.get("params", {}), f"{place}/wrapped")


def _patient(spec: StudySpec, params: Mapping[str, Any]) -> Pruner:
    wrapped = params.get("wrapped")
    inner = None if wrapped is None else PRUNERS[wrapped["name"]].make(spec, wrapped.get("params", {}))
    return PatientPruner(spec.maximizes, params["patience"], params.get("min_delta", 0.0), inner)


PRUNERS: Mapping[str, PrunerKind] = {
    "none": PrunerKind(lambda spec, params: NoPruner(), {}),
    "median": PrunerKind(lambda spec, params: PercentilePruner(spec.maximizes, 50.0, **params), _PERCENTILE),
    "percentile": PrunerKind(
        lambda spec, params: PercentilePruner(spec.maximizes, **params),
        {"percentile": number(0, 100, required=True), **_PERCENTILE},
    ),
    "halving": PrunerKind(
        lambda spec, params: HalvingPruner(spec.maximizes, **params),
        {
            "min_resource": integer(1),
            "reduction_factor": integer(2, 10_000),
            "min_early_stopping_rate": integer(0, 100),
            "bootstrap_count": integer(0),
        },
    ),
    "hyperband": PrunerKind(
        lambda spec, params: HyperbandPruner(spec.maximizes, spec.name, **params),
        {
            "min_resource": integer(1),
            "max_resource": integer(1, required=True),
            "reduction_factor": integer(2, 10_000),
            "bootstrap_count": integer(0),
        },
        _hyperband_rules,
    ),
    "patient": PrunerKind(
        _patient,
        {"patience": integer(0, required=True), "min_delta": AT_LEAST_ZERO, "wrapped": or_null(_PRUNER)},
        _patient_rules,
    ),
    "threshold": PrunerKind(
        lambda spec, params: ThresholdPruner(**params),
        {"lower": or_null(ANY_NUMBER), "upper": or_null(ANY_NUMBER), **_INTERVALS},
        _threshold_rules,
    ),
    "wilcoxon": PrunerKind(
        lambda spec, params: WilcoxonPruner(spec.maximizes, **params),
        {"p_threshold": number(0, 1), "n_startup_steps": integer(0)},
    ),
}


def pruner_faults(name: str, params: Mapping[str, Any], place: str) -> list[Fault]:
    kind = PRUNERS.get(name)
    if kind is None:
        return [Fault(f"{place}/name", f"{name!r} is no pruner; there are {', '.join(PRUNERS)}")]
    place = f"{place}/params"
    return faults(f"the pruner {name}", kind.options, params, place) or kind.rules(params, place)


def check_pruner(spec: StudySpec) -> list[Fault]:
    found = pruner_faults(spec.pruner.name, spec.pruner.params, "/pruner")
    if spec.pruner.name != "none" and len(spec.directions) > 1:
        detail = f"a pruner judges by one direction; this study has {len(spec.directions)}: use none"
        found.append(Fault("/pruner/name", detail))
    return found


def make_pruner(spec: StudySpec) -> Pruner:
    return PRUNERS[spec.pruner.name].make(spec, spec.pruner.params)
