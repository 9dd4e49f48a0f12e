"""The importances: shares of 1 for every parameter of the search space, whatever was tried."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

SPEC = StudySpec.model_validate(
    {
        "name": "s",
        "search_space": {
            "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
            "units": {"type": "int", "low": 32, "high": 256, "log": True},
            "kind": {"type": "categorical", "choices": [True, 1]},
            "momentum": {"type": "float", "low": 0.5, "high": 0.9, "step": 0.1, "when": {"kind": [1]}},
            "one": {"type": "int", "low": 3, "high": 3},
        },
        "sampler": {"name": "random", "seed": 5},
    }
)


def importances(spec: StudySpec, trials: list[HistoryTrial]) -> dict[str, float | None]:
    from hpo_service.tuning import importances  # which brings scikit-learn along

    return importances.importances(spec, trials)


def history(count: int, **outside: Any) -> list[HistoryTrial]:
    tuner = Tuner(SPEC)
    trials = []
    for number in range(count):
        params = tuner.draw(number, SPEC.search_space, {}).params | (outside if number == 3 else {})
        lr = params["lr"]
        assert isinstance(lr, float)
        value = -math.inf if number == 7 else -abs(math.log(lr / 1e-4))
        trials.append(HistoryTrial(number, TrialState.COMPLETE, params, (value,)))
    return trials


def total(shares: dict[str, float | None]) -> float:
    return sum(share for share in shares.values() if share is not None)


def test_what_matters_has_the_largest_share_and_what_cannot_vary_has_none() -> None:
    shares = importances(SPEC, history(150))
    assert list(shares) == list(SPEC.search_space.names())
    assert total(shares) == pytest.approx(1)
    assert shares["lr"] is not None
    assert shares["lr"] > 0.8
    assert shares["one"] is None


def test_what_matters_only_where_it_exists_is_judged_there() -> None:
    """Without momentum the values are better, but for nobody who has it does anything else matter."""
    trials = []
    for trial in history(200):
        momentum = trial.params.get("momentum")
        value = 1.0 if momentum is None else float(momentum)  # type: ignore[arg-type]
        trials.append(HistoryTrial(trial.number, trial.state, trial.params, (value,)))
    shares = importances(SPEC, trials)
    assert shares["momentum"] is not None
    assert shares["momentum"] > 0.5
    assert shares["lr"] is not None
    assert shares["lr"] < 0.1
    assert total(shares) == pytest.approx(1)


def test_what_never_varied_though_it_could_has_none() -> None:
    trials = [HistoryTrial(t.number, t.state, {**t.params, "units": 64}, t.values) for t in history(60)]
    momentums = [t for t in trials if "momentum" in t.params]
    others = [t for t in trials if "momentum" not in t.params]
    shares = importances(SPEC, [*others, momentums[0]])
    assert (shares["units"], shares["momentum"], shares["one"]) == (None, None, None)
    assert total(shares) == pytest.approx(1)


@pytest.mark.parametrize("outside", [{"lr": 0.1}, {"units": 1000}, {"momentum": 0.25, "kind": 1}])
def test_params_beyond_the_range_first_given_are_understood(outside: dict[str, Any]) -> None:
    shares = importances(SPEC, history(40, **outside))
    assert total(shares) == pytest.approx(1)


def test_of_several_directions_the_first_counts() -> None:
    spec = SPEC.model_copy(update={"directions": ["maximize", "minimize"]})
    trials = [HistoryTrial(t.number, t.state, t.params, (*(t.values or ()), float(t.number % 3))) for t in history(60)]
    assert importances(spec, trials) == importances(SPEC, history(60))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_next_to_nothing_all_that_vary_have_a_share(count: int) -> None:
    shares = importances(SPEC, history(count))
    told = [share for share in shares.values() if share is not None]
    assert sum(told) == pytest.approx(float(count == 2))
    assert shares["one"] is None


def test_of_few_trials_so_many_are_called_the_best_that_chance_seldom_names_the_first() -> None:
    weights = {"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.1, "e": 0.0, "f": 0.0}
    space = {name: {"type": "float", "low": 0, "high": 1} for name in weights}
    spec = StudySpec.model_validate({"name": "s", "search_space": space})
    named = []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        trials = []
        for number in range(50):
            params = dict(zip(weights, generator.random(6).tolist(), strict=True))
            value = -sum(weight * (params[name] - 0.6) ** 2 for name, weight in weights.items())
            noisy = (value + generator.normal(0, 0.01),)
            trials.append(HistoryTrial(number, TrialState.COMPLETE, params, noisy))
        shares = importances(spec, trials)
        named.append(max(shares, key=lambda name: shares[name] or 0.0))
    assert named.count("a") >= 9
