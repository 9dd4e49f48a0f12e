"""Choices that are lists, grids of any fineness, and what a given value is stored as."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from hpo_service.domain.choices import same_choice
from hpo_service.domain.parents import CannotExist, choices_of_parents
from hpo_service.domain.search_space import CategoricalParameter, SearchSpace, choice, integer, uniform


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([64], [64], True),
        ([64], [64.0], True),
        ([1], [True], False),
        ([64], [64, 64], False),
        ([[1, 2], [3]], [[1, 2], [3]], True),
        ([[1, 2], [3]], [[1, 2, 3]], False),
        ([], [], True),
        ([], None, False),
        ([64], 64, False),
        ([64], "[64]", False),
        ((64, 64), [64, 64], True),
        ([None], [None], True),
    ],
)
def test_lists_are_one_choice_when_their_values_are(a: Any, b: Any, same: bool) -> None:
    assert same_choice(a, b) is same
    assert same_choice(b, a) is same


def test_tuples_come_back_as_lists_and_a_space_survives_being_written_down() -> None:
    parameter = choice((64,), (64, 64), [[1, "a"], [None, [True]]], 3)
    assert parameter.choices == [[64], [64, 64], [[1, "a"], [None, [True]]], 3]
    space = SearchSpace({"sizes": parameter})
    assert SearchSpace.model_validate(json.loads(space.model_dump_json())) == space


@pytest.mark.parametrize(
    ("choices", "place", "rule"),
    [
        ([[[[[1]]]]], ("choices", 0), "more than 3 levels"),
        ([1, {"a": 1}], ("choices", 1), "an object cannot be a choice"),
        ([[1], [1.0]], ("choices", 1), "twice"),
        ([[2**53 + 1]], ("choices", 0), "beyond 2"),
        ([[float("nan")]], ("choices", 0), "no finite number"),
        ([[1, {"a": 2}]], ("choices", 0), "an object cannot be a choice"),
    ],
)
def test_what_is_no_choice_is_refused_where_it_stands(choices: list[Any], place: tuple[Any, ...], rule: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CategoricalParameter(choices=choices)
    (fault,) = refused.value.errors()
    assert fault["loc"] == place
    assert rule in fault["msg"]


def test_three_levels_are_taken() -> None:
    assert CategoricalParameter(choices=[[[[1]]], [[[2, "a"]]]]).contains([[[2, "a"]]])


@pytest.mark.parametrize(
    ("parameter", "given", "stored"),
    [
        (choice(2, 4), 2.0, 2),
        (choice(2.0, 4.0), 2, 2.0),
        (choice([2, 4], [8]), [2.0, 4.0], [2, 4]),
        (choice(True, 1), 1.0, 1),
        (uniform(0, 1, step=0.1), 0.1 + 0.2, 0.3),
        (uniform(0, 0.3, step=0.1), 0.1 + 0.2, 0.3),
        (uniform(0, 1, step=0.1), 1, 1.0),
        (uniform(0, 1), 0.30000000000000004, 0.30000000000000004),
        (uniform(0, 100, step=1e-6), 33.333333, 33.333333),
        (uniform(0, 100, step=1e-6), 33.333333 + 2e-14, 33.333333),
        (uniform(0, 2e7, step=1), 12_345_678, 12345678.0),
        (uniform(1.7e9, 1.8e9, step=60), 1_700_000_060, 1700000060.0),
        (integer(0, 10), 3.0, 3),
        (integer(1, 10, step=3), 7.0, 7),
    ],
)
def test_a_value_is_stored_as_the_study_would_draw_it(parameter: Any, given: Any, stored: Any) -> None:
    exact = parameter.exact(given)
    assert exact == stored
    assert json.dumps(exact) == json.dumps(stored)


@pytest.mark.parametrize(
    ("parameter", "outside"),
    [
        (uniform(0, 100, step=1e-6), 33.3333335),
        (uniform(0, 1, step=0.1), 0.35),
        (uniform(0, 1, step=0.3), 1.0),
        (uniform(0, 1, step=0.1), 1.1),
        (uniform(0, 1, step=0.1), -0.1),
        (integer(0, 2**53), 2**53 + 2),
        (uniform(0, 1, step=0.1), 10**400),
        (integer(0, 10, step=3), 4.0),
    ],
)
def test_what_lies_between_the_points_of_a_grid_is_outside(parameter: Any, outside: Any) -> None:
    assert not parameter.contains(outside)


@pytest.mark.parametrize(
    ("low", "high", "step", "written"),
    [
        (32, 512, 32, "[32, 64, 128, 256, 512]"),
        (1, 8, 1, "[1, 2, 4, 8]"),
        (1, 1_000_000, 1, "[1, 10, 100, 1000, 10000, 100000, 1000000]"),
    ],
)
def test_a_logarithmic_grid_is_refused_with_the_choices_that_say_it(
    low: int, high: int, step: int, written: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        integer(low, high, log=True, step=step)
    message = refused.value.errors()[0]["msg"]
    assert f'"ordered": true, "choices": {written}' in message


SPACE = SearchSpace.model_validate(
    {
        "opt": {"type": "categorical", "choices": ["sgd", "momentum", "nesterov", "adam"]},
        "mom": {"type": "float", "low": 0, "high": 1, "when": {"opt": ["momentum", "nesterov"]}},
        "damp": {"type": "float", "low": 0, "high": 1, "when": {"opt": ["momentum"]}},
        "beta": {"type": "float", "low": 0, "high": 1, "when": {"opt": ["adam"]}},
        "warm": {"type": "categorical", "choices": [True, False], "when": {"opt": ["nesterov"]}},
        "steps": {"type": "int", "low": 1, "high": 9, "when": {"warm": [True]}},
    }
)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"mom": 0.5}, {"opt": ["momentum", "nesterov"]}),
        ({"mom": 0.5, "damp": 0.1}, {"opt": ["momentum"]}),
        ({"steps": 3}, {"warm": [True], "opt": ["nesterov"]}),
        ({"steps": 3, "warm": True}, {"opt": ["nesterov"]}),
        ({"mom": 0.5, "opt": "momentum"}, {}),
        ({"opt": "sgd"}, {}),
        ({}, {}),
    ],
)
def test_parents_are_chosen_so_that_what_is_given_exists(given: Any, left: Any) -> None:
    assert choices_of_parents(SPACE, given) == left


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"opt": "sgd", "mom": 0.5}, "mom"),
        ({"mom": 0.5, "beta": 0.5}, "mom"),
        ({"opt": "adam", "steps": 3}, "steps"),
        ({"warm": False, "steps": 3}, "steps"),
    ],
)
def test_what_cannot_exist_together_is_told_apart(given: Any, param: str) -> None:
    with pytest.raises(CannotExist) as refused:
        choices_of_parents(SPACE, given)
    assert refused.value.param == param
