"""Every pruner decides as Optuna's class does, trial by trial and report by report."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_service.domain.measure import from_json
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.optuna_study import AttrRecorder, InMemoryStudy, frozen
from hpo_service.tuning.sorted_values import SortedValues
from hpo_service.tuning.tuner import Tuner, check

pruners = optuna.pruners
PRUNERS: list[tuple[str, dict[str, Any], Any]] = [
    ("none", {}, pruners.NopPruner),
    ("median", {}, pruners.MedianPruner),
    (
        "median",
        {"n_startup_trials": 0, "n_warmup_steps": 2, "interval_steps": 3, "n_min_trials": 2},
        pruners.MedianPruner,
    ),
    ("percentile", {"percentile": 25.0, "n_startup_trials": 2}, pruners.PercentilePruner),
    ("percentile", {"percentile": 80, "n_startup_trials": 1, "interval_steps": 2}, pruners.PercentilePruner),
    ("halving", {"min_resource": 1, "reduction_factor": 2}, pruners.SuccessiveHalvingPruner),
    (
        "halving",
        {"min_resource": 2, "reduction_factor": 3, "min_early_stopping_rate": 1, "bootstrap_count": 2},
        pruners.SuccessiveHalvingPruner,
    ),
    ("hyperband", {"max_resource": 9}, pruners.HyperbandPruner),
    ("hyperband", {"min_resource": 2, "max_resource": 8, "reduction_factor": 2}, pruners.HyperbandPruner),
    ("threshold", {"lower": -1.0, "upper": 1.0, "n_warmup_steps": 1}, pruners.ThresholdPruner),
    ("threshold", {"upper": 0.5, "interval_steps": 2}, pruners.ThresholdPruner),
    ("wilcoxon", {"p_threshold": 0.3}, pruners.WilcoxonPruner),
    ("patient", {"patience": 1, "min_delta": 0.1, "wrapped": None}, None),
    ("patient", {"patience": 0, "wrapped": {"name": "median", "params": {"n_startup_trials": 1}}}, None),
]


def theirs(name: str, params: dict[str, Any], kind: Any) -> Any:
    if name != "patient":
        return kind(**params)
    wrapped = params["wrapped"]
    inner = None if wrapped is None else pruners.MedianPruner(**wrapped["params"])
    return pruners.PatientPruner(inner, params["patience"], params.get("min_delta", 0.0))


measured = st.one_of(st.integers(-2, 2).map(float), st.floats(-3, 3), st.sampled_from([math.nan, math.inf, -math.inf]))
# What NumPy's percentile makes of infinite neighbours is not a number; there we keep a trial, or judge as it is right.
finite = st.one_of(st.integers(-2, 2).map(float), st.floats(-3, 3), st.just(math.nan))


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(("name", "params", "kind"), PRUNERS, ids=lambda case: str(case)[:60])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_decides_as_optunas(
    name: str, params: dict[str, Any], kind: Any, direction: str, data: st.DataObject
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = finite if name in ("median", "percentile", "patient") else measured
        curves = data.draw(st.lists(st.lists(values, min_size=1, max_size=10), min_size=1, max_size=12))
        compare(name, params, kind, direction, curves)


def compare(name: str, params: dict[str, Any], kind: Any, direction: str, curves: list[list[float]]) -> None:
    spec = spec_of(name, params, [direction])
    assert check(spec) == []
    ours, other = Tuner(spec), theirs(name, params, kind)
    past: list[Any] = []
    for number, curve in enumerate(curves):
        attrs: dict[str, Any] = {}
        reports: dict[int, float] = {}
        running = HistoryTrial(number, TrialState.RUNNING, {})
        pruned = False
        for step, value in enumerate(curve):
            reports[step] = value
            now = frozen(number, TrialState.RUNNING, {}, {}, None, reports, {k: from_json(v) for k, v in attrs.items()})
            study = Study([direction], [*past, now], spec.name, notes := AttrRecorder())
            expected = other.prune(study, now)
            verdict = ours.judge(number, reports)
            assert verdict.prune == expected, (number, step)
            assert {k: from_json(v) for k, v in verdict.system_attrs.items()} == notes.of_trial
            attrs |= json.loads(json.dumps(verdict.system_attrs, allow_nan=False))
            running = replace(running, reports=tuple(reports.items()), system_attrs=attrs)
            ours.absorb([running])
            if pruned := expected:
                break
        last = reports[max(reports)]
        ended = TrialState.PRUNED if pruned else TrialState.FAIL if math.isnan(last) else TrialState.COMPLETE
        told = (last,) if ended is TrialState.COMPLETE else None
        ours.absorb([replace(running, state=ended, values=told)])
        theirs_attrs = {key: from_json(value) for key, value in attrs.items()}
        past.append(frozen(number, ended, {}, {}, told, reports, theirs_attrs))


class Study(InMemoryStudy):
    """With what Hyperband's and Wilcoxon's pruners ask of a study besides its trials."""

    def __init__(self, directions: list[str], trials: list[Any], name: str, notes: AttrRecorder) -> None:
        super().__init__(directions, trials, name, notes)
        self.sampler, self.pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
        notes.get_study_id_from_name = lambda name: 0  # type: ignore[attr-defined]
        notes.get_study_directions = lambda study_id: self._directions  # type: ignore[attr-defined]
        notes.get_all_trials = lambda study_id, deepcopy=True, states=None: [  # type: ignore[attr-defined]
            trial for trial in trials if states is None or trial.state in states
        ]
        notes.check_trial_is_updatable = lambda *_: None  # type: ignore[attr-defined]
        notes.__class__ = _Storage

    @property
    def best_trial(self) -> Any:
        complete = [trial for trial in self._trials if trial.state.name == "COMPLETE"]
        if not complete:
            raise ValueError("no trial is complete")
        best = max if self.direction.name == "MAXIMIZE" else min
        return best(complete, key=lambda trial: float(trial.values[0]))


class _Storage(AttrRecorder, optuna.storages.InMemoryStorage):
    """Attributes that pass where Optuna looks at the type of a storage."""


def spec_of(name: str, params: dict[str, Any], directions: list[str] | None = None) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "study",
            "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
            "directions": directions or ["maximize"],
            "sampler": {"name": "random", "seed": 1},
            "pruner": {"name": name, "params": params},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params", "kind"), PRUNERS, ids=lambda case: str(case)[:60])
@settings(max_examples=30, deadline=None)
@given(curves=st.lists(st.dictionaries(st.integers(-2, 20), measured, max_size=6), max_size=8))
def test_no_report_is_too_odd_to_be_judged(
    name: str, params: dict[str, Any], kind: Any, curves: list[dict[int, float]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner = Tuner(spec_of(name, params))
        for number, reports in enumerate(curves):
            verdict = tuner.judge(number, reports)
            assert type(verdict.prune) is bool
            steps = tuple(sorted(reports.items()))
            tuner.absorb(
                [HistoryTrial(number, TrialState.COMPLETE, {}, (math.inf,), steps, dict(verdict.system_attrs))]
            )


def test_a_restarted_server_judges_as_the_one_before_would_have() -> None:
    for name, params, _ in PRUNERS:
        first = Tuner(spec_of(name, params))
        history = []
        for number in range(20):
            attrs: dict[str, Any] = {}
            reports = {step: math.sin(number * 7 + step) + step for step in range(6)}
            for last in range(6):
                attrs |= first.judge(number, {step: reports[step] for step in range(last + 1)}).system_attrs
            history.append(HistoryTrial(number, TrialState.COMPLETE, {}, (0.0,), tuple(reports.items()), attrs))
            first.absorb(history[-1:])
        again = Tuner(spec_of(name, params))
        again.absorb(reversed(history))
        for value in (-1.0, 3.0, 6.0):
            reports = {0: 0.0, 3: value, 4: value}
            assert again.judge(99, reports) == first.judge(99, reports)


def test_a_rung_of_an_earlier_attempt_does_not_count_for_the_next() -> None:
    tuner = Tuner(spec_of("halving", {"min_resource": 1, "reduction_factor": 2}))
    tuner.absorb([HistoryTrial(0, TrialState.COMPLETE, {}, (1.0,), (), {"completed_rung_0": 0.5})])
    tuner.absorb(
        [HistoryTrial(1, TrialState.RUNNING, {}, None, (), {"completed_rung_0": 0.9, "completed_rung_1": 2.0})]
    )
    assert tuner.judge(1, {1: 0.1}).prune
    assert not tuner.judge(1, {1: 0.7}).prune
    assert tuner.judge(1, {1: 0.7}).system_attrs == {"completed_rung_0": 0.7}


@given(values=st.lists(st.floats(-5, 5) | st.integers(-2, 2).map(float), max_size=40), share=st.floats(0, 100))
def test_sorted_values_are_a_sorted_list(values: list[float], share: float) -> None:
    kept = SortedValues()
    kept_chunk = [*values, *values[::2]]
    for value in kept_chunk:
        kept.add(value)
    for value in values[::2]:
        kept.remove(value)
    assert [kept[rank] for rank in range(len(kept))] == sorted(values)
    assert [kept.below(value) for value in values] == [sum(v < value for v in values) for value in values]
    if values:
        import numpy as np

        assert kept.percentile(share) == pytest.approx(float(np.percentile(values, share)))


@pytest.mark.parametrize("asked_every", [1, 300, 24_000])
def test_sorted_values_stay_sorted_across_their_chunks(asked_every: int) -> None:
    kept = SortedValues()
    values = [math.sin(k) for k in range(24_000)]
    for number, value in enumerate(values):
        kept.add(value)
        if number % asked_every == 0:
            assert kept.below(value) <= number
    for value in values[:12_000]:
        kept.remove(value)
    assert [kept[rank] for rank in range(0, 12_000, 100)] == sorted(values[12_000:])[::100]
    for rank in range(12_000):
        assert kept.percentile(100 * rank / 11_999) == pytest.approx(kept[rank])


@pytest.mark.parametrize("steps", [(0, 1), (1, 2), (100, 200)])
def test_halving_begins_at_the_first_report_where_no_resource_is_given(steps: tuple[int, int]) -> None:
    tuner = Tuner(spec_of("halving", {"reduction_factor": 2}), draws=False)
    ended = []
    for number, value in enumerate((0.1, 0.3, 0.2)):
        reports: dict[int, float] = {}
        attrs: dict[str, Any] = {}
        for step in steps:
            reports[step] = value
            verdict = tuner.judge(number, reports, [step])
            attrs |= verdict.system_attrs
            tuner.absorb([HistoryTrial(number, TrialState.RUNNING, {}, None, (), attrs)])
            if verdict.prune:
                ended.append((number, len(reports)))
                break
    assert ended == [(2, 1)]
    assert sorted(attrs) == ["completed_rung_0"]
