"""TPE's mixtures have the densities of Optuna's, on any axes and for any trials."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers._tpe import parzen_estimator
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import default_weights

from hpo_service.domain.search_space import SearchSpace
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.drawing import uniforms
from hpo_service.tuning.parzen import Coordinate, Coordinates, Floats, Mixture

RANGES: list[dict[str, Any]] = [
    {"type": "float", "low": -1.0, "high": 3.0},
    {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    {"type": "float", "low": 0.1, "high": 0.9, "step": 0.1},
    {"type": "float", "low": 0.0, "high": 100.0, "step": 0.05},
    {"type": "int", "low": -3, "high": 12, "step": 3},
    {"type": "int", "low": 0, "high": 50},
    {"type": "int", "low": 10, "high": 100_000},
    {"type": "int", "low": 1, "high": 256, "log": True},
    {"type": "int", "low": 5_000, "high": 10_000_000, "log": True},
    {"type": "categorical", "choices": ["a", None, 3, True]},
]
THEIR_DEFAULTS = _ParzenEstimatorParameters(
    prior_weight=1.0,
    consider_magic_clip=True,
    consider_endpoints=False,
    weights=default_weights,
    multivariate=True,
)


class StableNumPy:
    """Of equal places an unstable sort takes any first, and the first has another bandwidth."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def argsort(array: Floats) -> Any:
        return np.argsort(array, kind="stable")


@pytest.fixture(autouse=True, scope="module")
def _stable_sorts_in_optuna() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parzen_estimator, "np", StableNumPy())
        yield


class Both:
    """The same trials as our mixture and as Optuna's."""

    def __init__(self, axes: Axes, on: Coordinates, positions: list[list[float]]) -> None:
        self._axes, self._on = axes, on
        trials = [self._numbers(row) for row in positions]
        self.ours = Mixture(on).fit(self._places(trials), np.ones(len(trials)))
        names = [each.axis.name for each in on.each]
        observed = {name: np.array([trial[name] for trial in trials], dtype=float) for name in names}
        choices: dict[str, Any] = {each.axis.name: each.axis for each in on.each if each.is_choice}
        for name, axis in choices.items():
            observed[name] = np.array([axis.numbers.index(int(k)) for k in observed[name]], dtype=float)
        ranges = {name: axes.distributions[name] for name in names}
        self.theirs = _ParzenEstimator(observed, ranges, THEIR_DEFAULTS)

    def _numbers(self, positions: list[float]) -> dict[str, Any]:
        params = {
            name: self._axes[name].at(position) for name, position in zip(self._axes.names, positions, strict=True)
        }
        numbers = self._axes.numbers_of(params)
        assert numbers is not None
        return numbers

    def _places(self, trials: list[dict[str, Any]]) -> Floats:
        rows = [[each.place(trial[each.axis.name]) for trial in trials] for each in self._on.each]
        return np.array(rows).reshape(len(rows), len(trials))

    def logs(self, positions: list[list[float]]) -> tuple[Floats, Floats]:
        """At points: by us, and by Optuna."""
        trials = [self._numbers(row) for row in positions]
        points = self._places(trials)
        ours = np.log(self.ours.density(points, self._on.features(points)))
        theirs = {
            each.axis.name: np.array([trial[each.axis.name] for trial in trials], float) for each in self._on.each
        }
        return ours, self.theirs.log_pdf(theirs)


def axes_and_coordinates(ranges: list[dict[str, Any]]) -> tuple[Axes, Coordinates]:
    space = SearchSpace.model_validate({f"p{k}": each for k, each in enumerate(ranges)})
    axes = Axes(space, space)
    return axes, Coordinates([Coordinate.of(axes[name]) for name in axes.names], range(len(axes.names)))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_the_better_of_two_points_is_the_better_by_as_much(data: st.DataObject) -> None:
    ranges = data.draw(st.lists(st.sampled_from(RANGES), min_size=1, max_size=5))
    axes, on = axes_and_coordinates(ranges)
    seed = data.draw(st.integers(0, 1000))
    random = np.random.default_rng(seed)
    good, others = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 140))
    crowd = random.random((others, len(ranges))) ** data.draw(st.integers(1, 3))
    near = random.random((good, len(ranges))) * 0.3
    points = [*random.random((10, len(ranges))).tolist(), *near[:5].tolist(), *crowd[:5].tolist()]
    ours, theirs = zip(*(Both(axes, on, some.tolist()).logs(points) for some in (near, crowd)), strict=True)
    advantage, expected = ours[0] - ours[1], theirs[0] - theirs[1]
    assert advantage == pytest.approx(expected - expected[0] + advantage[0], abs=0.02)


def test_beyond_single_precision_it_is_still_optunas() -> None:
    axes, on = axes_and_coordinates(RANGES[:2] * 20)
    random = np.random.default_rng(5)
    near, crowd = (random.random((count, 40)).tolist() for count in (9, 120))
    ours, theirs = zip(*(Both(axes, on, some).logs([*near, *crowd]) for some in (near, crowd)), strict=True)
    difference = (ours[0] - ours[1]) - (theirs[0] - theirs[1])
    assert difference == pytest.approx(np.full(len(difference), difference[0]), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(RANGES)), ids=lambda place: str(RANGES[place])[:60])
def test_candidates_lie_where_the_density_says(place: int) -> None:
    """Of many candidates the share in each quarter of the range is the mass there."""
    axes, on = axes_and_coordinates([RANGES[place]])
    trials = [[0.1], [0.12], [0.3], [0.31], [0.32], [0.9]]
    both = Both(axes, on, trials)
    count = 40_000
    candidates = both.ours.sample(uniforms(2 * count, 1, 2).reshape(2, count))
    theirs = next(iter(both.theirs.sample(np.random.RandomState(3), count).values()))
    axis = on.each[0]
    if not axis.is_choice:
        theirs = (np.log(theirs) - axis.low) / axis.span if axis.log else (theirs - axis.low) / axis.span
    bins = np.linspace(0, 1, 5) if not axis.is_choice else np.arange(5) - 0.5
    ours_share, theirs_share = (np.histogram(each, bins)[0] / count for each in (candidates[0], theirs))
    assert ours_share == pytest.approx(theirs_share, abs=5 * math.sqrt(0.5 / count))
