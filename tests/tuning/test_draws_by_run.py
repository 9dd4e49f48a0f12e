"""A study that is defined by run draws what the same space declared draws, as far as its trials share parameters."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from hpo_service.domain.growing_space import EXPECTED, POSSIBLE, without_draws
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

FLAT: dict[str, Any] = {
    "rate": {"type": "float", "low": 1e-5, "high": 1.0, "log": True},
    "layers": {"type": "int", "low": 1, "high": 8},
    "share": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.25},
}
KINDS: dict[str, Any] = {**FLAT, "kind": {"type": "categorical", "choices": ["svc", "forest"]}}
DEPTH = {"type": "int", "low": 1, "high": 30}
WITH_DEPTH = {**KINDS, "depth": DEPTH}
UNDER_FOREST = {**KINDS, "depth": {**DEPTH, "when": {"kind": ["forest"]}}}
TPE = ("tpe", {"n_startup_trials": 5})


def tuner_of(
    space: Mapping[str, Any], sampler: str, options: Mapping[str, Any], directions: int = 1, **fields: Any
) -> Tuner:
    body = {
        "name": "s",
        "directions": ["minimize"] * directions,
        "search_space": space,
        "sampler": {"name": sampler, "seed": 7, "params": options},
        **fields,
    }
    return Tuner(StudySpec.model_validate(body))


def by_run(space: Mapping[str, Any], sampler: str, options: Mapping[str, Any], directions: int = 1) -> Tuner:
    return tuner_of(space, sampler, options, directions, define_by_run=True)


def losses(params: Mapping[str, Any], directions: int) -> tuple[float, ...]:
    return tuple(abs(params["layers"] - 3 * k) + params["rate"] for k in range(1, directions + 1))


@pytest.mark.parametrize(
    ("sampler", "options", "directions"),
    [
        ("random", {}, 1),
        (*TPE, 1),
        ("tpe", {"n_startup_trials": 5, "multivariate": False}, 1),
        (*TPE, 2),
        ("tpe", {"n_startup_trials": 5, "group": True}, 1),
        ("qmc", {}, 1),
        ("qmc", {"qmc_type": "halton", "scramble": True}, 1),
        ("gp", {"n_startup_trials": 5}, 1),
        ("auto", {}, 1),
        ("auto", {}, 2),
        ("cmaes", {"popsize": 4}, 1),
        ("nsgaii", {"population_size": 4}, 2),
    ],
)
def test_what_all_trials_share_is_drawn_as_if_it_were_declared(sampler: str, options: Any, directions: int) -> None:
    space = FLAT if sampler == "cmaes" else KINDS
    declared = tuner_of(space, sampler, options, directions)
    run = by_run(space, sampler, options, directions)
    for number in range(24):
        drawn, aside = declared.draw(number, declared._space, {}), run.draw(number, run._space, {})
        assert aside.params == {}
        assert aside.system_attrs[EXPECTED] == drawn.params
        assert without_draws(aside.system_attrs) == drawn.system_attrs
        told = losses(drawn.params, directions)
        for tuner in (declared, run):
            tuner.absorb([HistoryTrial(number, TrialState.COMPLETE, drawn.params, told, (), drawn.system_attrs)])


def history(count: int) -> list[HistoryTrial]:
    """Trials of a conditional space, some with a depth and some without."""
    source = tuner_of(UNDER_FOREST, "random", {})
    drawn = [source.draw(number, source._space, {}).params for number in range(count)]
    return [HistoryTrial(number, TrialState.COMPLETE, params, losses(params, 1)) for number, params in enumerate(drawn)]


def test_a_parameter_that_some_trials_lack_is_drawn_by_itself_as_under_a_condition() -> None:
    declared, run = tuner_of(UNDER_FOREST, *TPE), by_run(WITH_DEPTH, *TPE)
    declared.absorb(history(30))
    run.absorb(history(30))
    for number in range(30, 40):
        params = declared.draw(number, declared._space, {}).params
        aside = run.draw(number, run._space, {}).system_attrs
        assert aside[EXPECTED].keys() == KINDS.keys()
        assert aside[EXPECTED] == {name: value for name, value in params.items() if name != "depth"}
        assert aside[POSSIBLE].keys() == {"depth"}
        if "depth" in params:
            assert aside[POSSIBLE]["depth"] == params["depth"]


@pytest.mark.parametrize("sampler", [TPE, ("qmc", {}), ("nsgaii", {"population_size": 4}), ("random", {})])
def test_a_draw_does_not_depend_on_the_order_in_which_a_server_has_met_the_trials(sampler: Any) -> None:
    drawn = []
    for seed in range(3):
        trials: Sequence[HistoryTrial] = history(30)
        running = [
            HistoryTrial(30, TrialState.RUNNING, {"layers": 2}, system_attrs={EXPECTED: {"rate": 0.5, "layers": 2}})
        ]
        mixed = random.Random(seed).sample([*trials, *running], 31)
        tuner = by_run(WITH_DEPTH, *sampler)
        for trial in mixed:
            tuner.absorb([trial])
        drawn.append(tuner.draw(31, tuner._space, {}))
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_trial_that_runs_repels_before_it_has_asked_for_anything() -> None:
    alone, beside = by_run(FLAT, *TPE), by_run(FLAT, *TPE)
    past = [
        HistoryTrial(trial.number, trial.state, {n: trial.params[n] for n in FLAT}, trial.values)
        for trial in history(20)
    ]
    for tuner in (alone, beside):
        tuner.absorb(past)
    expected = alone.draw(20, alone._space, {}).system_attrs[EXPECTED]
    beside.absorb(
        [
            HistoryTrial(20 + k, TrialState.RUNNING, {}, system_attrs={EXPECTED: expected, POSSIBLE: {}})
            for k in range(8)
        ]
    )
    assert alone.draw(40, alone._space, {}) != beside.draw(40, beside._space, {})


def test_what_an_enqueue_gives_is_expected_whether_it_is_known_or_not() -> None:
    tuner = by_run(FLAT, *TPE)
    aside = tuner.draw(0, tuner._space, {"layers": 2, "unknown": "x"}).system_attrs
    assert aside[EXPECTED]["layers"] == 2
    assert aside[EXPECTED]["unknown"] == "x"
    assert aside[EXPECTED].keys() == {*FLAT, "unknown"}
