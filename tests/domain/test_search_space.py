"""The search space as a value: what it is, what it contains, and that it survives being written down."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hpo_service.domain.choices import same_choice
from hpo_service.domain.measure import from_json, to_json
from hpo_service.domain.search_space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    SearchSpace,
    params_faults,
)

SPACE = SearchSpace.model_validate(
    {
        "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
        "s": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.1},
        "n": {"type": "int", "low": 32, "high": 256},
        "k": {"type": "int", "low": 1, "high": 10, "step": 3},
        "c": {"type": "categorical", "choices": ["a", 1, True, None, 0.5]},
        "m": {"type": "float", "low": 0, "high": 1, "when": {"c": ["a", True]}},
        "d": {"type": "categorical", "choices": [1, 2], "when": {"c": [1]}},
        "deep": {"type": "int", "low": 0, "high": 1, "when": {"c": [1], "d": [2]}},
    }
)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("lr", [1e-6, 1e-2, 1e-4], [0, 1, -1e-4, 9.99e-7, True, "1e-4", None]),
        ("s", [0, 1, 0.1, 0.3, 0.7, 0.30000000000000004, 1.0], [0.15, 1.1, -0.1, True, "0.1"]),
        ("n", [32, 256, 100, 100.0], [31, 257, 100.5, 2**80, True, "100", None]),
        ("k", [1, 4, 7, 10], [2, 3, 0, 13, 4.5]),
        ("c", ["a", 1, 1.0, True, None, 0.5], ["b", 0, False, "1", 0.25, "None"]),
    ],
)
def test_a_parameter_contains_what_it_would_draw(name: str, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not SPACE[name].contains(value)] == []
    assert [value for value in outside if SPACE[name].contains(value)] == []


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (True, True, True),
        (None, None, True),
        ("1", 1, False),
        (None, False, False),
    ],
)
def test_true_is_no_number(a: Any, b: Any, same: bool) -> None:
    assert same_choice(a, b) is same
    assert same_choice(b, a) is same


@pytest.mark.parametrize(
    ("params", "exist"),
    [
        ({"c": "a"}, {"m"}),
        ({"c": True}, {"m"}),
        ({"c": 1}, {"d"}),
        ({"c": 1, "d": 2}, {"d", "deep"}),
        ({"c": 1, "d": 1}, {"d"}),
        ({"c": None, "d": 2}, set()),
        ({}, set()),
    ],
)
def test_conditions_are_joined_by_and(params: dict[str, Any], exist: set[str]) -> None:
    assert {name for name in ("m", "d", "deep") if SPACE.exists(name, params)} == exist


def test_names_come_after_those_that_their_conditions_ask_about() -> None:
    backwards = SearchSpace(dict(reversed(list(SPACE.items()))))
    order = backwards.in_order_of_conditions()
    assert sorted(order) == sorted(SPACE.names())
    assert order.index("c") < order.index("d") < order.index("deep")


def test_a_long_chain_of_conditions_is_no_cycle() -> None:
    chain: dict[str, Any] = {"p0": {"type": "categorical", "choices": [1]}}
    for n in range(1, 100):
        chain[f"p{n}"] = {"type": "categorical", "choices": [1], "when": {f"p{n - 1}": [1]}}
    assert len(SearchSpace.model_validate(chain).in_order_of_conditions()) == 100
    chain["p0"]["when"] = {"p99": [1]}
    with pytest.raises(ValidationError, match="cycle"):
        SearchSpace.model_validate(chain)


@pytest.mark.timeout(120)  # without bounds on the work, it would take years
def test_many_conditions_on_many_are_checked_quickly() -> None:
    dense: dict[str, Any] = {"p0": {"type": "categorical", "choices": [1]}}
    for n in range(1, 100):
        when = {f"p{k}": [1] for k in range(n)}
        dense[f"p{n}"] = {"type": "categorical", "choices": [1], "when": when}
    for body in (dense, dict(reversed(dense.items()))):
        assert len(SearchSpace.model_validate(body).in_order_of_conditions()) == 100


def test_faults_name_the_params_that_the_space_would_never_give() -> None:
    found = params_faults(SPACE, {"lr": 1, "n": 64, "x": 1})
    assert [name for name, _ in found] == ["lr", "x"]


names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
choices = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


def _distinct(values: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        if not any(same_choice(value, other) for other in kept):
            kept.append(value)
    return kept


parameters = st.one_of(
    st.builds(
        lambda a, b, log: FloatParameter(low=min(a, b), high=max(a, b), log=log and min(a, b) > 0),
        st.floats(-1e300, 1e300),
        st.floats(-1e300, 1e300),
        st.booleans(),
    ),
    st.builds(
        lambda a, b, log: IntParameter(low=min(a, b), high=max(a, b), log=log and min(a, b) > 0),
        st.integers(-(2**53), 2**53),
        st.integers(-(2**53), 2**53),
        st.booleans(),
    ),
    st.lists(choices, min_size=1, max_size=10).map(lambda values: CategoricalParameter(choices=_distinct(values))),
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(names, parameters, min_size=1, max_size=5))
def test_a_search_space_reads_back_as_it_was_written(body: dict[str, Any]) -> None:
    space = SearchSpace(body)
    text = json.dumps(space.model_dump(mode="json"))
    again = SearchSpace.model_validate_json(text)
    assert again == space
    assert json.dumps(again.model_dump(mode="json")) == text


@settings(max_examples=200, deadline=None)
@given(st.floats())
def test_a_measured_value_comes_back_from_json_as_it_was(value: float) -> None:
    text = json.dumps(to_json(value), allow_nan=False)
    again = from_json(json.loads(text))
    assert again == value or (again != again and value != value)
