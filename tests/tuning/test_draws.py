"""Whatever the sampler, the search space and the history: a draw lies in the space, exactly, and can be repeated."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo_service.domain.choices import same_choice
from hpo_service.domain.search_space import CategoricalParameter, SearchSpace
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Exhausted, Tuner, check

NUMBERS = {
    "real": {"type": "float", "low": -1.0, "high": 2.0},
    "log": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "step": {"type": "float", "low": 0.1, "high": 0.9, "step": 0.1},
    "whole": {"type": "int", "low": -3, "high": 12, "step": 3},
    "log_whole": {"type": "int", "low": 1, "high": 256, "log": True},
    "one": {"type": "float", "low": 0.5, "high": 0.5},
}
MIXED = {**NUMBERS, "choice": {"type": "categorical", "choices": [True, 1, "1", None, 0.5]}}
LISTS: dict[str, Any] = {
    **NUMBERS,
    "layers": {"type": "categorical", "choices": [[64], [64, 64], [[1, True], "a"], None]},
    "size": {"type": "categorical", "choices": [16, 32, 64, 128], "ordered": True},
    "shape": {"type": "categorical", "choices": [[1, 1], [2, 2], [4, 4]], "ordered": True},
}
ORDERED = {**NUMBERS, "size": LISTS["size"], "shape": LISTS["shape"]}
CONDITIONAL = {
    "momentum": {"type": "float", "low": 0.5, "high": 0.99, "when": {"optimizer": ["momentum", "nesterov"]}},
    "optimizer": {"type": "categorical", "choices": ["sgd", "momentum", "nesterov"]},
    "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "warm": {"type": "int", "low": 0, "high": 3, "when": {"schedule": ["cosine"], "optimizer": ["nesterov"]}},
    "schedule": {"type": "categorical", "choices": ["flat", "cosine"]},
}
FINITE = {
    "a": {"type": "int", "low": 0, "high": 4},
    "b": {"type": "float", "low": 0.0, "high": 0.3, "step": 0.1},
    "c": {"type": "categorical", "choices": [True, 1, None]},
    "d": {"type": "int", "low": 1, "high": 3, "when": {"c": [1]}},
}
SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("random", {}),
    ("tpe", {"n_startup_trials": 3}),
    ("tpe", {"n_startup_trials": 3, "multivariate": False}),
    ("tpe", {"n_startup_trials": 3, "group": True}),
    ("tpe", {"n_startup_trials": 0, "constant_liar": False, "n_ei_candidates": 1}),
    ("qmc", {}),
    ("qmc", {"qmc_type": "halton", "scramble": True}),
    ("nsgaii", {"population_size": 4}),
    ("cmaes", {"popsize": 4}),
    ("cmaes", {"popsize": 4, "with_margin": True}),
    ("cmaes", {"use_separable_cma": True, "consider_pruned_trials": True}),
    ("cmaes", {"lr_adapt": True, "n_startup_trials": 5}),
    ("gp", {"n_startup_trials": 3}),
    ("auto", {}),
]
GRIDS: list[tuple[str, dict[str, Any]]] = [("grid", {})]


def spec_of(space: dict[str, Any], sampler: str, params: dict[str, Any], directions: int = 1) -> StudySpec:
    spec = StudySpec.model_validate(
        {
            "name": "study",
            "search_space": space,
            "directions": ["minimize", "maximize", "minimize"][:directions],
            "sampler": {"name": sampler, "seed": 11, "params": params},
        }
    )
    assert check(spec) == []
    return spec


def assert_inside(space: SearchSpace, params: dict[str, Any]) -> None:
    for name, value in params.items():
        assert space[name].contains(value), (name, value)
        if space[name].type == "int":
            assert type(value) is int
        if space[name].type == "float":
            assert type(value) is float
        parameter = space[name]
        if isinstance(parameter, CategoricalParameter):
            assert any(same_choice(value, choice) and type(value) is type(choice) for choice in parameter.choices)
    assert list(params) == [name for name in space.names() if space.exists(name, params)]


def finish(number: int, params: dict[str, Any], attrs: dict[str, Any], directions: int = 1) -> HistoryTrial:
    """A plausible end for trial `number`: mostly COMPLETE, sometimes anything else."""
    loss = sum(math.sin(3 * value) for value in params.values() if type(value) in (int, float))
    values: tuple[float, ...] | None = (loss, -loss + number % 5, 0.1 * number)[:directions]
    state, reports = TrialState.COMPLETE, ((0, loss), (1, math.nan))
    if number % 7 == 3:
        state, values = TrialState.FAIL, None
    elif number % 7 == 5 and directions == 1:
        state, reports = TrialState.PRUNED, ((0, loss), (3, [loss, math.inf, math.nan][number % 3]))
        values = None if number % 3 == 2 else (reports[-1][1],)
    elif number % 11 == 6:
        values = (math.inf, -math.inf, math.inf)[:directions]
    elif number % 13 == 4:
        state, values = TrialState.RUNNING, None
    elif number % 13 == 7:
        state, values = TrialState.WAITING, None
    return HistoryTrial(number, state, params, values, reports, attrs)


def run(tuner: Tuner, space: SearchSpace, numbers: range, directions: int = 1) -> list[HistoryTrial]:
    history = []
    for number in numbers:
        drawn = tuner.draw(number, space, {})
        assert_inside(space, drawn.params)
        attrs = json.loads(json.dumps(drawn.system_attrs, allow_nan=False))
        tuner.absorb([HistoryTrial(number, TrialState.RUNNING, drawn.params, system_attrs=attrs)])
        history.append(finish(number, drawn.params, attrs, directions))
        tuner.absorb(history[-1:])
    return history


def test_where_every_parameter_has_one_value_that_is_drawn() -> None:
    spec = spec_of({"one": NUMBERS["one"]}, "tpe", {"n_startup_trials": 0})
    tuner = Tuner(spec)
    run(tuner, spec.search_space, range(12))
    assert tuner.draw(12, spec.search_space, {}).params == {"one": 0.5}


def name_of(case: Any) -> str:
    return case if isinstance(case, str) else "-".join(f"{key}={value}" for key, value in case.items())


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "params"), SAMPLERS, ids=name_of)
@pytest.mark.parametrize("space", [MIXED, CONDITIONAL, LISTS], ids=["mixed", "conditional", "lists"])
def test_a_draw_lies_in_the_space(sampler: str, params: dict[str, Any], space: dict[str, Any]) -> None:
    if sampler == "cmaes":
        space = ORDERED if space is LISTS else NUMBERS
    spec = spec_of(space, sampler, params)
    run(Tuner(spec), spec.search_space, range(45))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "params"), [case for case in SAMPLERS if case[0] not in ("cmaes", "gp")], ids=name_of
)
@pytest.mark.parametrize("directions", [2, 3])
def test_a_draw_lies_in_the_space_with_several_directions(
    sampler: str, params: dict[str, Any], directions: int
) -> None:
    spec = spec_of(CONDITIONAL, sampler, params, directions)
    run(Tuner(spec), spec.search_space, range(30), directions)


NARROWED = {
    "real": {"type": "float", "low": 0.25, "high": 0.75},
    "log": {"type": "float", "low": 2e-5, "high": 3e-4, "log": True},
    "step": {"type": "float", "low": 0.30000000000000004, "high": 0.7, "step": 0.1},
    "whole": {"type": "int", "low": 3, "high": 9, "step": 3},
    "log_whole": {"type": "int", "low": 16, "high": 17, "log": True},
    "one": {"type": "float", "low": 0.5, "high": 0.5},
}
WIDENED = {
    **NUMBERS,
    "real": {"type": "float", "low": -7.0, "high": 2.5},
    "log": {"type": "float", "low": 1e-6, "high": 0.1, "log": True},
    "whole": {"type": "int", "low": -30, "high": 12, "step": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "params"), SAMPLERS, ids=name_of)
@pytest.mark.parametrize("other", [NARROWED, WIDENED], ids=["narrowed", "widened"])
def test_a_draw_lies_in_the_ranges_of_the_round(sampler: str, params: dict[str, Any], other: dict[str, Any]) -> None:
    first = ORDERED if sampler == "cmaes" else {**MIXED, **LISTS}
    other = {**other, "size": {**LISTS["size"], "choices": [16, 64]}, "shape": {**LISTS["shape"], "choices": [[4, 4]]}}
    if sampler != "cmaes":
        other = {**other, "choice": {"type": "categorical", "choices": [1, "1", 0.5]}}
        other = {**other, "layers": {"type": "categorical", "choices": [[64, 64], None]}}
    other = {name: other[name] for name in first}
    spec = spec_of(first, sampler, params)
    tuner = Tuner(spec)
    run(tuner, spec.search_space, range(20))
    run(tuner, SearchSpace.model_validate(other), range(20, 45))
    run(tuner, spec.search_space, range(45, 60))


def test_a_round_without_a_dead_branch_draws_without_it() -> None:
    spec = spec_of(CONDITIONAL, "tpe", {"n_startup_trials": 3})
    space = SearchSpace.model_validate(
        {"optimizer": {"type": "categorical", "choices": ["sgd"]}, "lr": CONDITIONAL["lr"]}
        | {"schedule": CONDITIONAL["schedule"]}
    )
    tuner = Tuner(spec)
    run(tuner, spec.search_space, range(20))
    for number in range(20, 40):
        params = tuner.draw(number, space, {}).params
        assert set(params) == {"optimizer", "lr", "schedule"}
        tuner.absorb([finish(number, params, {})])


@pytest.mark.parametrize(("sampler", "params"), SAMPLERS, ids=name_of)
def test_a_restarted_server_goes_on_as_the_one_before_would_have(sampler: str, params: dict[str, Any]) -> None:
    spec = spec_of(NUMBERS if sampler == "cmaes" else CONDITIONAL, sampler, params)
    first = Tuner(spec)
    history = run(first, spec.search_space, range(40))
    again = Tuner(spec)
    again.absorb(history[20:])
    again.absorb(history[:20])
    for number in range(40, 44):
        expected, found = first.draw(number, spec.search_space, {}), again.draw(number, spec.search_space, {})
        assert found == expected
        trial = finish(number, found.params, found.system_attrs)
        first.absorb([trial])
        again.absorb([trial])


@pytest.mark.parametrize(("sampler", "params"), SAMPLERS, ids=name_of)
def test_different_trials_and_seeds_give_different_draws(sampler: str, params: dict[str, Any]) -> None:
    spec = spec_of(NUMBERS, sampler, params)
    history = run(Tuner(spec), spec.search_space, range(30))
    assert len({json.dumps(trial.params) for trial in history}) >= 20
    if (sampler, params.get("scramble", False)) != ("qmc", False):
        other = spec.model_copy(update={"sampler": spec.sampler.model_copy(update={"seed": 12})})
        # Number 0 is the middle, whatever the seed, where a Gaussian process draws.
        assert run(Tuner(other), spec.search_space, range(2))[1] != history[1]


@pytest.mark.parametrize(("sampler", "params"), [*SAMPLERS, *GRIDS], ids=name_of)
def test_what_an_enqueue_gave_is_taken_as_it_is(sampler: str, params: dict[str, Any]) -> None:
    spec = spec_of({"a": FINITE["a"], "b": FINITE["b"]} if sampler == "cmaes" else FINITE, sampler, params)
    tuner = Tuner(spec)
    run(tuner, spec.search_space, range(12))
    narrower = SearchSpace.model_validate({**spec.search_space.model_dump(), "a": {"type": "int", "low": 0, "high": 1}})
    drawn = tuner.draw(12, narrower, {"a": 4})
    assert drawn.params["a"] == 4
    assert_inside(spec.search_space, drawn.params)
    if sampler != "cmaes":
        whole = tuner.draw(13, spec.search_space, {"c": True, "b": 0.2, "a": 1, "d": 3})
        assert list(whole.params.items()) == [("a", 1), ("b", 0.2), ("c", True)]


def test_a_grid_gives_each_point_once_whoever_draws_and_ends() -> None:
    spec = spec_of(FINITE, "grid", {})
    points: list[str] = []
    tuner = Tuner(spec)
    tuner.absorb([HistoryTrial(0, TrialState.FAIL, {"a": 2, "b": 0.1, "c": None})])  # imported, or enqueued
    number = 1
    while True:
        try:
            drawn = tuner.draw(number, spec.search_space, {})
        except Exhausted:
            break
        assert drawn == tuner.draw(number, spec.search_space, {}), "a draw alone takes nothing"
        assert_inside(spec.search_space, drawn.params)
        points.append(json.dumps(drawn.params))
        tuner.absorb([HistoryTrial(number, TrialState.RUNNING, drawn.params, system_attrs=drawn.system_attrs)])
        number += 1
        if number % 17 == 0:  # another server takes over
            tuner = Tuner(spec)
            tuner.absorb([HistoryTrial(0, TrialState.FAIL, {"a": 2, "b": 0.1, "c": None})])
            tuner.absorb(HistoryTrial(k + 1, TrialState.FAIL, json.loads(point)) for k, point in enumerate(points))
    assert len(points) == len(set(points)) == 5 * 4 * (1 + 3 + 1) - 1


def test_a_grid_too_large_to_list_is_drawn_from_at_once() -> None:
    spec = spec_of({f"p{k}": {"type": "int", "low": 1, "high": 10**6} for k in range(100)}, "grid", {})
    tuner = Tuner(spec)
    assert len({json.dumps(trial.params) for trial in run(tuner, spec.search_space, range(20))}) == 20


def test_a_sequence_uses_no_index_twice() -> None:
    spec = spec_of(CONDITIONAL, "qmc", {})
    history = run(Tuner(spec), spec.search_space, range(9))
    late = Tuner(spec)
    late.absorb([history[7], history[2]])
    assert late.draw(20, spec.search_space, {}).system_attrs == {"qmc_index": 8}
    late.absorb([history[8]])
    assert late.draw(20, spec.search_space, {}).system_attrs == {"qmc_index": 9}


def test_nothing_in_the_record_is_ever_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    spec = spec_of(NUMBERS, "cmaes", {"popsize": 4})
    tuner = Tuner(spec)
    history = run(tuner, spec.search_space, range(20))
    assert not any("optimizer" in json.dumps(trial.system_attrs) for trial in history)
    evil = HistoryTrial(20, TrialState.COMPLETE, history[0].params, (0.0,), (), {"cma:optimizer:0": "80049520"})
    tuner.absorb([evil])
    run(tuner, spec.search_space, range(21, 30))


numbers = st.floats(-1e6, 1e6)
values = st.floats(allow_nan=False)


@st.composite
def float_parameters(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        low = draw(st.floats(1e-9, 1e6))
        return {"type": "float", "low": low, "high": low * draw(st.floats(1, 1e6)), "log": True}
    low = draw(st.sampled_from([-5.0, 0.0, 0.1, 1 / 3, 1e3])) if draw(st.booleans()) else draw(numbers)
    high = low + draw(st.floats(0, 1e6))
    steps = draw(st.sampled_from([None, 0.1, 0.25, 1 / 3, 7.0]))
    return {"type": "float", "low": low, "high": high} | ({"step": steps} if steps and steps <= high - low else {})


@st.composite
def int_parameters(draw: st.DrawFn) -> dict[str, Any]:
    log = draw(st.booleans())
    low = draw(st.integers(1, 2**40) if log else st.integers(-(2**40), 2**40))
    high = low + draw(st.integers(0, 2**40))
    step = 1 if log else draw(st.integers(1, 5))
    return {"type": "int", "low": low, "high": high} | (
        {"log": True} if log else {"step": step} if step <= high - low else {}
    )


choices = st.lists(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=3),
    min_size=1,
    max_size=6,
    unique_by=lambda choice: (isinstance(choice, bool), choice),
)


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    space: dict[str, Any] = {}
    for k in range(draw(st.integers(1, 5))):
        parameter: dict[str, Any] = draw(
            float_parameters() | int_parameters() | choices.map(lambda some: {"type": "categorical", "choices": some})
        )
        parents: list[str] = [name for name, other in space.items() if other["type"] == "categorical"]
        has_condition: bool = bool(parents) and draw(st.booleans())
        if has_condition:
            parent: str = draw(st.sampled_from(parents))
            parameter["when"] = {
                parent: draw(st.lists(st.sampled_from(space[parent]["choices"]), min_size=1, max_size=3))
            }
        space[f"p{k}"] = parameter
    return space


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_history_leads_to_a_draw_inside_the_space(data: st.DataObject) -> None:
    sampler, params = data.draw(st.sampled_from([*SAMPLERS, *GRIDS]))
    directions = data.draw(st.integers(1, 3))
    spec = StudySpec.model_validate(
        {
            "name": "s",
            "search_space": data.draw(spaces()),
            "directions": ["minimize", "maximize", "minimize"][:directions],
            "sampler": {"name": sampler, "seed": data.draw(st.integers(0, 2**53)), "params": params},
        }
    )
    if check(spec):
        return
    tuner, donor = (
        Tuner(spec),
        Tuner(spec.model_copy(update={"sampler": spec.sampler.model_copy(update={"name": "random", "params": {}})})),
    )
    for number in range(data.draw(st.integers(0, 25))):
        state = data.draw(st.sampled_from([*TrialState, TrialState.COMPLETE]))
        drawn_params = donor.draw(number, spec.search_space, {}).params
        attrs: dict[str, Any] = {}
        if data.draw(st.booleans()):
            try:
                drawn = tuner.draw(number, spec.search_space, {})
            except Exhausted:
                break
            drawn_params, attrs = drawn.params, drawn.system_attrs
        given_values = None
        if state is TrialState.COMPLETE:
            given_values = tuple(data.draw(values) for _ in range(directions))
        elif state is TrialState.PRUNED and directions == 1:
            given_values = data.draw(st.none() | st.tuples(values))
        reports = data.draw(st.dictionaries(st.integers(0, 9), st.floats(), max_size=3))
        tuner.absorb([HistoryTrial(number, state, drawn_params, given_values, tuple(sorted(reports.items())), attrs)])
    try:
        drawn = tuner.draw(99, spec.search_space, {})
    except Exhausted:
        assert sampler == "grid"
        return
    assert_inside(spec.search_space, drawn.params)
    json.dumps(drawn.system_attrs, allow_nan=False)
    assert tuner.draw(99, spec.search_space, {}) == drawn
