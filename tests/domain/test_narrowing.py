"""The arithmetic of narrowing: by example where the contract gives a number, by property for any space."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpo_service.domain.narrowing import how_many_to_keep, narrow
from hpo_service.domain.search_space import (
    LARGEST_INTEGER,
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Params,
    SearchSpace,
)


def narrowed(first: SearchSpace, *kept: Params, current: SearchSpace | None = None, **how: Any) -> SearchSpace:
    space, _ = narrow(first, current or first, kept, expand=how.pop("expand", False), **how)
    return space


def x(space: SearchSpace) -> tuple[Any, Any]:
    parameter = space["x"]
    assert not isinstance(parameter, CategoricalParameter)
    return parameter.low, parameter.high


@pytest.mark.parametrize(
    ("keep", "complete", "kept"),
    [
        (0.2, 0, 0),
        (0.2, 1, 1),
        (0.2, 5, 1),
        (0.2, 6, 2),
        (0.2, 15, 3),
        (0.2, 40, 8),
        (0.1, 30, 3),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (1.0, 7, 7),
        (1e-9, 100, 1),
        (1e-300, 5, 1),
    ],
)
def test_it_keeps_the_share_rounded_up(keep: float, complete: int, kept: int) -> None:
    assert how_many_to_keep(keep, complete) == kept


LINEAR = SearchSpace({"x": FloatParameter(low=0.0, high=10.0)})
LOG = SearchSpace({"x": FloatParameter(low=1e-6, high=1e-2, log=True)})
WHOLE = SearchSpace({"x": IntParameter(low=0, high=100)})
LOG_WHOLE = SearchSpace({"x": IntParameter(low=1, high=1024, log=True)})
STEPPED = SearchSpace({"x": FloatParameter(low=0.5, high=5.5, step=0.5)})
STEPPED_WHOLE = SearchSpace({"x": IntParameter(low=3, high=99, step=4)})


@pytest.mark.parametrize(
    ("space", "values", "low", "high"),
    [
        (LINEAR, (4.0, 6.0), 3.8, 6.2),
        (LINEAR, (4.0, 5.0, 6.0), 3.8, 6.2),
        (LINEAR, (5.0, 5.0), 5.0, 5.0),
        (LINEAR, (0.1, 9.9), 0.0, 10.0),
        (LOG, (1e-5, 1e-3), 10**-5.2, 10**-2.8),
        (LOG, (1e-4,), 1e-4, 1e-4),
        (LOG, (1e-6, 1e-2), 1e-6, 1e-2),
        (WHOLE, (20, 40), 18, 42),
        (WHOLE, (20, 25), 20, 25),
        (WHOLE, (0, 100), 0, 100),
        (WHOLE, (7,), 7, 7),
        (LOG_WHOLE, (4, 64), 4, 84),
        (STEPPED, (1.0, 4.0), 1.0, 4.0),
        (STEPPED, (0.5, 5.5), 0.5, 5.5),
        (STEPPED_WHOLE, (7, 47), 3, 51),
    ],
)
def test_the_range_is_what_they_span_and_a_tenth_more_on_each_side(
    space: SearchSpace, values: tuple[float, ...], low: float, high: float
) -> None:
    found = x(narrowed(space, *[Params({"x": value}) for value in values]))
    assert found == pytest.approx((low, high), rel=1e-12)


def test_one_value_is_kept_to_the_last_bit() -> None:
    for value in (1e-5, 0.1 + 0.2, 3.3e-3):
        space = SearchSpace({"x": FloatParameter(low=1e-6, high=1.0, log=True)})
        assert x(narrowed(space, {"x": value})) == (value, value)


def test_without_a_kept_trial_nothing_changes() -> None:
    assert narrow(LINEAR, LINEAR, [], expand=True) == (LINEAR, [])


def test_choices_that_no_kept_trial_uses_are_dropped_in_the_order_first_given() -> None:
    space = SearchSpace({"c": CategoricalParameter(choices=["a", True, 1, None])})
    found, changes = narrow(space, space, [{"c": None}, {"c": True}], expand=False)
    assert found["c"].choices == [True, None]  # type: ignore[union-attr]
    (change,) = changes
    assert (change.kind, change.before, change.after) == ("dropped", ["a", True, 1, None], [True, None])


def test_a_parameter_that_no_kept_trial_has_stays_while_it_may_exist() -> None:
    space = SearchSpace.model_validate(
        {
            "c": {"type": "categorical", "choices": ["a", "b"]},
            "m": {"type": "float", "low": 0, "high": 1, "when": {"c": ["b"]}},
            "k": {"type": "float", "low": 0, "high": 1, "when": {"c": ["a", "b"]}},
        }
    )
    found = narrowed(space, {"c": "a", "k": 0.5})
    assert set(found.names()) == {"c", "k"}
    assert found["k"].when == {"c": ["a"]}
    again = narrowed(space, {"c": "b", "k": 0.5, "m": 0.5}, current=found)
    assert set(again.names()) == {"c", "m", "k"}


@pytest.mark.parametrize(
    ("space", "values", "low", "high"),
    [
        (LINEAR, (9.5, 9.9), 9.46, 20.0),
        (LINEAR, (0.0, 0.5), -10.0, 0.55),
        (LINEAR, (5.0, 6.0), 4.9, 6.1),
        (LINEAR, (0.1, 9.9), -10.0, 20.0),
        (LOG, (9e-3, 9.9e-3), None, 0.1),
        (LOG, (1e-6, 1.1e-6), 1e-7, None),
        (WHOLE, (98, 100), 98, 200),
    ],
)
def test_a_crowded_side_moves_outwards_by_a_width_or_a_factor_of_ten(
    space: SearchSpace, values: tuple[float, ...], low: float | None, high: float | None
) -> None:
    found = x(narrowed(space, *[Params({"x": value}) for value in values], expand=True))
    for side, expected in zip(found, (low, high), strict=True):
        if expected is not None:
            assert side == pytest.approx(expected)


def test_it_never_moves_beyond_what_the_objective_takes() -> None:
    found = x(narrowed(LINEAR, {"x": 0.0}, {"x": 10.0}, expand=True, bounds=lambda name: (-1.0, 12.0)))
    assert found == (-1.0, 12.0)
    assert x(narrowed(LINEAR, {"x": 0.0}, {"x": 10.0}, expand=True, bounds=lambda name: (0.0, None))) == (0.0, 20.0)


def test_what_an_earlier_round_reached_stays_reachable() -> None:
    once = narrowed(LINEAR, {"x": 9.9}, {"x": 9.0}, expand=True)
    twice = narrowed(LINEAR, {"x": 15.0}, {"x": 9.0}, current=once)
    assert x(twice) == pytest.approx((8.4, 15.6))


def test_a_change_is_told_for_each_side_that_moved() -> None:
    _, changes = narrow(LINEAR, LINEAR, [{"x": 0.1}, {"x": 5.0}], expand=False)
    (change,) = changes
    assert (change.parameter, change.kind, change.before) == ("x", "narrowed", 10.0)
    assert change.after == pytest.approx(5.49)
    _, changes = narrow(LINEAR, LINEAR, [{"x": 9.9}, {"x": 5.0}], expand=True)
    assert sorted(change.kind for change in changes) == ["expanded", "narrowed"]


# -- any space ------------------------------------------------------------------------------------------------


@st.composite
def floats_and_values(draw: Any) -> tuple[FloatParameter, list[float]]:
    if draw(st.booleans()):
        step = draw(st.sampled_from([0.1, 0.05, 0.3, 1e-3, 7.0, 1 / 3]))
        low = draw(st.sampled_from([0.0, 0.05, -1.0, 100.0, 1e-3]))
        count = draw(st.integers(1, 50))
        parameter = FloatParameter(low=low, high=low + count * step, step=step)
        values = [min(low + k * step, parameter.high) for k in draw(st.lists(st.integers(0, count), min_size=1))]
        return parameter, values
    log = draw(st.booleans())
    ends = st.floats(5e-324 if log else -1.7e308, 1.7e308, allow_nan=False)
    low, high = sorted((draw(ends), draw(ends)))
    if not math.isfinite(high - low):
        low, high = low / 4, high / 4
    parameter = FloatParameter(low=low, high=high, log=log)
    return parameter, draw(st.lists(st.floats(low, high), min_size=1, max_size=5))


@st.composite
def ints_and_values(draw: Any) -> tuple[IntParameter, list[int]]:
    log = draw(st.booleans())
    whole = st.integers(1 if log else -LARGEST_INTEGER, LARGEST_INTEGER)
    low, high = sorted((draw(whole), draw(whole)))
    step = None
    if not log and high > low:
        step = draw(st.none() | st.integers(1, high - low))
    count = (high - low) // (step or 1)
    values = [low + (step or 1) * k for k in draw(st.lists(st.integers(0, count), min_size=1, max_size=5))]
    return IntParameter(low=low, high=high, log=log, step=step), values


FOUR_TENTHS = (FloatParameter(low=0.0, high=1.0, step=0.1), [0.7, 0.8])
WIDEST = (FloatParameter(low=0.0, high=1e308), [0.0])
LOG_WIDEST = (FloatParameter(low=1e-308, high=1e308, log=True), [1e-308, 1e308])
LARGEST = (IntParameter(low=0, high=LARGEST_INTEGER), [LARGEST_INTEGER])


@settings(max_examples=100, deadline=None)
@given(st.one_of(floats_and_values(), ints_and_values()), st.booleans())
@example(FOUR_TENTHS, False)
@example(WIDEST, True)
@example(LOG_WIDEST, False)
@example(LARGEST, True)
@example((FloatParameter(low=0.05, high=0.15000000000000002, step=0.1), [0.15000000000000002]), False)
@example((IntParameter(low=-3194, high=9007199254171657, step=1125899906842225), [-3194]), True)
def test_any_round_can_be_written_down_and_read_again(chosen: Any, expand: bool) -> None:
    parameter, values = chosen
    first = current = SearchSpace({"x": parameter})
    for _ in range(4):
        current, _changes = narrow(first, current, [{"x": value} for value in values], expand=expand)
        assert SearchSpace.model_validate_json(current.model_dump_json()) == current


@settings(max_examples=100, deadline=None)
@given(st.one_of(floats_and_values(), ints_and_values()))
@example((FloatParameter(low=0, high=13.799999999999999, step=0.3), [0.0, 12.6]))
def test_without_expand_any_round_lies_in_the_first_and_holds_what_was_kept(chosen: Any) -> None:
    parameter, values = chosen
    first = SearchSpace({"x": parameter})
    try:
        low, high = x(narrowed(first, *[Params({"x": value}) for value in values]))
    except OverflowError:
        pytest.fail("narrowing gave no range at all")
    assert parameter.low <= low <= high <= parameter.high
    if parameter.step is None:
        assert low <= min(values)
        assert max(values) <= high
    else:
        near = 1e-6 * parameter.step
        assert low <= min(values) + near
        assert max(values) - near <= high
