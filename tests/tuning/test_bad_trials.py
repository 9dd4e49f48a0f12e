"""The mixture that is kept up trial by trial is the one that is made of all of them at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpo_service.domain.search_space import SearchSpace
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.bad_trials import BadTrials
from hpo_service.tuning.parzen import MANY, Coordinate, Coordinates, Floats, Mixture

RANGES: list[dict[str, Any]] = [
    {"type": "float", "low": -1.0, "high": 3.0},
    {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    {"type": "float", "low": 0.1, "high": 0.9, "step": 0.1},
    {"type": "int", "low": 1, "high": 256, "log": True},
    {"type": "categorical", "choices": ["a", None, 3, True]},
]


def coordinates(ranges: list[dict[str, Any]]) -> Coordinates:
    space = SearchSpace.model_validate({f"p{k}": each for k, each in enumerate(ranges)})
    axes = Axes(space, space)
    return Coordinates([Coordinate.of(axes[name]) for name in axes.names], range(len(axes.names)))


def places_on(on: Coordinates, random: np.random.Generator, count: int) -> Floats:
    """(count, axes): now and then two trials in one place."""
    places = np.round(random.random((count, len(on.each))), 2)
    for column, each in enumerate(on.each):
        if each.is_choice:
            places[:, column] = random.integers(0, each.cells, count)
        elif each.cells:
            places[:, column] = each.snapped(places[:, column])
    return places


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    ranges=st.lists(st.sampled_from(RANGES), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    size=st.sampled_from([0, 2, MANY - 3, MANY + 40]),
    sampled_for=st.sampled_from([0.0, 1.0, 3.7]),
)
@example(ranges=RANGES[4:], seed=1, size=MANY + 40, sampled_for=1.0)
@example(ranges=RANGES[:2], seed=2, size=MANY + 40, sampled_for=3.7)
def test_after_any_comings_and_goings(ranges: list[dict[str, Any]], seed: int, size: int, sampled_for: float) -> None:
    on = coordinates(ranges)
    random = np.random.default_rng(seed)
    places = places_on(on, random, size + 60)
    others, there = BadTrials(on), set(range(size))
    for number in there:
        others.put(number, places[number].tolist(), False)
    sampled: set[int] = set()
    for _ in range(40):
        number = int(random.integers(0, len(places)))
        if number in there and random.random() < 0.4:
            others.drop(number)
            there.discard(number)
            sampled.discard(number)
        else:
            others.put(number, places[number].tolist(), bool(number % 3))
            there.add(number)
            sampled -= {number}
            sampled |= {number} if number % 3 else set()
        if random.random() < 0.5:
            others.mixture(sampled_for)
    numbers = sorted(there)
    standing = np.array([sampled_for if number in sampled and sampled_for else 1.0 for number in numbers])
    at_once = Mixture(on).fit(places[numbers].reshape(-1, len(on.each)).T, standing)
    points = places_on(on, random, 24).T
    kept_up = others.mixture(sampled_for)
    features = on.features(points)
    assert kept_up.density(points, features) == pytest.approx(at_once.density(points, features), rel=1e-5)


def test_what_was_not_there_is_dropped_in_vain() -> None:
    on = coordinates(RANGES[:1])
    others = BadTrials(on)
    others.put(3, [0.25], False)
    others.drop(4)
    points = np.array([[0.1, 0.9]])
    alone = Mixture(on).fit(np.array([[0.25]]))
    kept_up = others.mixture(1)
    assert kept_up.density(points, on.features(points)).tolist() == alone.density(points, on.features(points)).tolist()
