"""A curve answers as a plain dict of its reports would, and a verdict costs the same however many there are."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_service.domain import curve as curve_module
from hpo_service.domain.curve import Curve
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.signed_ranks import SignedRanks
from hpo_service.tuning.tuner import Tuner
from tests.tuning.test_pruners_like_optuna import spec_of

values = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))
changes = st.lists(st.tuples(st.integers(0, 40), values, st.integers(0, 50)), max_size=80)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(changes=changes, data=st.data())
def test_a_curve_is_what_its_reports_are(changes: Any, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve_module, "_LARGEST_CHUNK", 4)
        curve, plain, sizes = Curve(), {}, {}
        for step, value, size in changes:
            curve.put(step, value, size)
            plain[step], sizes[step] = value, size
    steps = sorted(plain)
    assert repr(list(curve.items())) == repr([(step, plain[step]) for step in steps])
    assert (len(curve), curve.bytes) == (len(plain), sum(sizes.values()))
    first, end = sorted((data.draw(st.integers(0, 45)), data.draw(st.integers(0, 45))))
    for sign in (1.0, -1.0):
        losses = [sign * plain[step] for step in steps[first:end] if not math.isnan(plain[step])]
        assert curve.lowest_loss(sign, first, end) == min(losses, default=None)
    for value in {value for _, value, _ in changes}:
        assert curve.holds(value) == any(value == other for other in plain.values())
    if steps:
        assert repr(curve.last) == repr((steps[-1], plain[steps[-1]]))
        assert curve.step_before_the_last == (steps[-2] if len(steps) > 1 else None)
    most = data.draw(st.integers(0, 500))
    fitting = [step for step in steps if sum(sizes[other] for other in steps if other >= step) <= most]
    assert curve.first_of_the_last(most) == (fitting[0] if fitting else None)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-5, 5).map(lambda n: n / 2), min_size=60, max_size=120), st.integers(0, 50))
def test_signed_ranks_are_those_of_scipy(differences: list[float], gone: int) -> None:
    from scipy.stats import wilcoxon

    ranks = SignedRanks()
    for difference in (*differences, *differences[:gone]):
        ranks.add(difference)
    for difference in differences[:gone]:
        ranks.remove(difference)
    ours = ranks.p_of_greater()
    if any(differences):
        theirs = wilcoxon(differences, alternative="greater", zero_method="zsplit", method="asymptotic").pvalue
        assert ours == pytest.approx(float(theirs), rel=1e-9, abs=1e-15)


PRUNERS: list[tuple[str, dict[str, Any]]] = [
    ("median", {"n_startup_trials": 1}),
    ("percentile", {"percentile": 25.0, "n_startup_trials": 1}),
    ("patient", {"patience": 10}),
    ("patient", {"patience": 500, "wrapped": {"name": "median", "params": {"n_startup_trials": 1}}}),
    ("halving", {"min_resource": 1}),
    ("hyperband", {"max_resource": 100_000}),
    ("threshold", {"upper": 1e9}),
    ("wilcoxon", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params"), PRUNERS)
@pytest.mark.parametrize("order", ["rising", "falling", "again"])
def test_a_verdict_makes_no_more_calls_at_ten_thousand_steps_than_at_a_thousand(
    name: str, params: dict[str, Any], order: str
) -> None:
    few, many = (calls_of_verdicts(name, params, steps, order) for steps in (1_000, 10_000))
    assert many <= 1.5 * few


def calls_of_verdicts(name: str, params: dict[str, Any], steps: int, order: str) -> int:
    """Python's calls in a hundred verdicts on a trial that has so many steps already."""
    tuner = Tuner(spec_of(name, params, ["minimize"]))
    past = tuple((step, math.sin(step)) for step in range(0, 2 * steps + 400, 2))
    tuner.absorb([HistoryTrial(0, TrialState.COMPLETE, {}, (1.0,), past)])
    curve = Curve.of({step: math.cos(step) for step in range(200, 2 * steps + 200, 2)})
    tuner.judge(1, curve)
    count = 0

    def called(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    for turn in range(100):
        step = {"rising": 2 * steps + 200 + turn, "falling": 199 - turn, "again": 300}[order]
        sys.setprofile(called)
        curve.put(step, math.sin(turn))
        tuner.judge(1, curve, [step])
        sys.setprofile(None)
    return count
