"""The Gaussian process: its slopes, what it expects, and that a draw follows from seed, number and history."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from hpo_service.domain.search_space import Value
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import BECAUSE, HistoryTrial, TrialState
from hpo_service.tuning import gaussian_process, gp
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.cube import Cube
from hpo_service.tuning.drawing import DrawnParams
from hpo_service.tuning.gaussian_process import NOISE, Hyperparameters, Posterior, fitted
from hpo_service.tuning.gp import _log_improvement, targets
from hpo_service.tuning.later_gains import LaterGains
from hpo_service.tuning.tuner import Tuner

SPACE: dict[str, Any] = {
    "rate": {"type": "float", "low": 1e-5, "high": 1.0, "log": True},
    "units": {"type": "int", "low": 8, "high": 256, "log": True},
    "kind": {"type": "categorical", "choices": ["plain", True, 1]},
    "momentum": {"type": "float", "low": 0.0, "high": 0.99, "when": {"kind": [True, 1]}},
}


def spec_of(sampler: str, space: dict[str, Any] = SPACE) -> StudySpec:
    return StudySpec.model_validate(
        {"name": "s", "directions": ["minimize"], "search_space": space, "sampler": {"name": sampler, "seed": 5}}
    )


def test_the_slopes_are_those_of_finite_differences() -> None:
    generator = np.random.default_rng(0)
    points, axis_of = generator.random((20, 3)), np.array([0, 1, 1])
    values, at = generator.standard_normal(20), np.array([-0.3, 0.2, 0.1, -2.0])
    squares = gaussian_process._squares(points, axis_of, 2)

    def misfit(logarithms: np.ndarray) -> float:
        return gaussian_process._misfit(Hyperparameters.of(logarithms), squares, values)[0]

    slopes = gaussian_process._misfit(Hyperparameters.of(at), squares, values)[1]
    steps = 1e-5 * np.eye(4)
    assert slopes == pytest.approx([(misfit(at + step) - misfit(at - step)) / 2e-5 for step in steps], rel=1e-5)


def test_without_noise_it_expects_what_was_told_and_is_sure_of_it() -> None:
    points = np.linspace(0, 1, 8)[:, None]
    values = np.sin(5 * points[:, 0])
    posterior = Posterior(Hyperparameters(np.array([0.3]), 1.0, 1e-9), np.array([0]), points, values)
    means, deviations = posterior.predict(points)
    assert means == pytest.approx(values, abs=1e-3)
    assert deviations.max() < 1e-2
    assert posterior.predict(points + 0.07)[1].min() > deviations.max()


def test_a_running_trial_changes_the_certainty_alone() -> None:
    points, running = np.array([[0.1], [0.5], [0.9]]), np.array([[0.3]])
    at, axis_of, values = Hyperparameters(np.array([0.3]), 1.0, 1e-4), np.array([0]), np.array([0.0, 1.0, 0.5])
    alone = Posterior(at, axis_of, points, values).predict(running)
    beside = Posterior(at, axis_of, points, values, running).predict(running)
    assert beside[0] == pytest.approx(alone[0])
    assert beside[1] < 0.1 * alone[1]


def test_the_improvement_is_right_near_and_far() -> None:
    z = np.array([2.0, 0.0, -0.999, -1.001, -5.0, -40.0, -1e6])
    exact = [
        math.log(math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) + x * 0.5 * math.erfc(-x / math.sqrt(2)))
        for x in z[:5]
    ]
    found = _log_improvement(z)
    assert found[:5] == pytest.approx(exact, rel=1e-5)
    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()


def test_a_divergence_bends_the_targets_no_more_than_its_rank() -> None:
    for worst in (math.inf, 1e9):
        found = targets(np.array([1.0, 2.0, 3.0, 4.0, worst]))
        assert (np.diff(found) > 0).all()
        assert found[-1] < 2
    assert targets(np.array([math.inf, math.inf])) == pytest.approx([0, 0])


@pytest.mark.filterwarnings("error")
def test_losses_as_large_as_numbers_go_are_fitted_like_small_ones() -> None:
    small = np.array([-1.0, 0.5, 1.0, 0.25])
    assert targets(small * 1.7e308) == pytest.approx(targets(small))


def test_choices_are_told_apart_and_an_absent_parameter_rests() -> None:
    spec = spec_of("gp")
    cube = Cube(Axes(spec.search_space, spec.search_space))
    kinds: list[Value] = ["plain", True, 1]
    rows = [
        cube.places({"rate": 1e-5, "units": 8, "kind": "plain"}),
        cube.places({"rate": 1e-5, "units": 8, "kind": True, "momentum": 0.0}),
        cube.places({"rate": 1e-5, "units": 8, "kind": 1, "momentum": 0.0}),
    ]
    features = cube.features(np.array(rows))
    assert len({tuple(row) for row in features.tolist()}) == 3
    for row, kind in zip(rows, kinds, strict=True):
        assert cube.params(row)["kind"] is kind
        assert ("momentum" in cube.params(row)) is (kind != "plain")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["gp", "auto"])
def test_a_draw_follows_from_seed_number_and_history_however_the_history_came(sampler: str) -> None:
    spec = spec_of(sampler)
    tuner, order = Tuner(spec), random.Random(1)
    finished: list[HistoryTrial] = []
    running: list[HistoryTrial] = []
    for number in range(60):
        drawn = tuner.draw(number, spec.search_space, {})
        if number % 12 == 11:
            restarted = Tuner(spec)
            restarted.absorb(order.sample(finished, len(finished)))
            restarted.absorb(order.sample(running, len(running)))
            assert restarted.draw(number, spec.search_space, {}) == drawn
        running.append(HistoryTrial(number, TrialState.RUNNING, drawn.params, None, (), drawn.system_attrs))
        tuner.absorb(running[-1:])
        if len(running) == 4:
            ended = running.pop(order.randrange(4))
            rate = math.log10(float(ended.params["rate"]))  # type: ignore[arg-type]
            state = TrialState.FAIL if rate > -0.5 else TrialState.COMPLETE
            values = None if rate > -0.5 else ((rate + 1) ** 2,)
            finished.append(
                HistoryTrial(
                    ended.number, state, ended.params, values, (), ended.system_attrs, failed_in_training=rate > -0.5
                )
            )
            tuner.absorb(finished[-1:])


@pytest.mark.slow
def test_a_draw_near_the_best_follows_from_its_history_too_whenever_the_server_was_started() -> None:
    spec, order = spec_of("auto"), random.Random(2)
    scattered = Tuner(spec_of("random"))
    finished = [loss_told(scattered.draw(number, spec.search_space, {}), number) for number in range(116)]
    tuner = Tuner(spec)
    tuner.absorb(finished)
    nearby = 0
    for number in range(
        116, 132
    ):  # hyperparameters are found anew on the way, of all trials and of those near the best
        drawn = tuner.draw(number, spec.search_space, {})
        restarted = Tuner(spec)
        restarted.absorb(order.sample(finished, len(finished)))
        assert restarted.draw(number, spec.search_space, {}) == drawn
        nearby += "around the best" in str(drawn.system_attrs[BECAUSE])
        finished.append(loss_told(drawn, number))
        tuner.absorb(finished[-1:])
    assert nearby == 5


def test_whenever_the_hyperparameters_of_all_are_found_anew_those_near_the_best_are() -> None:
    # Else they would follow from whichever of all were in use when they were wanted first.
    assert set(gp._REFITTED_AT) <= set(gp._NEIGHBOURS_REFITTED_AT)
    assert len(gp._NEIGHBOURS_REFITTED_AT) > 2 * len(gp._REFITTED_AT)


def test_a_draw_near_the_best_lies_between_the_best() -> None:
    spec = spec_of("auto")
    scattered = Tuner(spec_of("random"))
    tuner = Tuner(spec)
    tuner.absorb([loss_told(scattered.draw(number, spec.search_space, {}), number) for number in range(120)])
    drawn = tuner.draw(120, spec.search_space, {})
    assert "around the best" in str(drawn.system_attrs[BECAUSE])
    assert abs(math.log10(float(drawn.params["rate"])) + 3) < 0.5  # type: ignore[arg-type]
    held = tuner.draw(120, spec.search_space, {"rate": 0.9})
    assert held.params["rate"] == 0.9


@pytest.mark.parametrize(("noise", "nearby"), [(0.0, True), (3.0, False)])
def test_near_the_best_is_drawn_only_where_noise_hides_little(noise: float, nearby: bool) -> None:
    spec, generator = spec_of("auto"), np.random.default_rng(4)
    scattered, tuner = Tuner(spec_of("random")), Tuner(spec)
    for number in range(120):
        drawn = scattered.draw(number, spec.search_space, {})
        tuner.absorb([loss_told(drawn, number, noise * float(generator.standard_normal()))])
    drawn = tuner.draw(120, spec.search_space, {})
    assert ("around the best" in str(drawn.system_attrs[BECAUSE])) is nearby


@pytest.mark.parametrize("space", [{"x": {"type": "float", "low": 1.0, "high": 1.0}}, SPACE])
def test_where_nothing_is_to_be_told_apart_nothing_is_drawn_near_the_best(space: dict[str, Any]) -> None:
    spec = spec_of("auto", space)
    scattered, tuner = Tuner(spec_of("random", space)), Tuner(spec)
    for number in range(102):
        drawn = scattered.draw(number, spec.search_space, {})
        failed = HistoryTrial(number, TrialState.FAIL, drawn.params, None, (), {}, failed_in_training=True)
        tuner.absorb([failed])
    assert "around the best" not in str(tuner.draw(102, spec.search_space, {}).system_attrs[BECAUSE])


def test_where_no_trial_below_a_size_has_finished_a_draw_near_the_best_is_made_all_the_same() -> None:
    spec = spec_of("auto")
    scattered, tuner = Tuner(spec_of("random")), Tuner(spec)
    for number in range(400, 520):
        tuner.absorb([loss_told(scattered.draw(number, spec.search_space, {}), number)])
    early = scattered.draw(3, spec.search_space, {})
    tuner.absorb([HistoryTrial(3, TrialState.RUNNING, early.params, None, (), early.system_attrs)])
    assert "around the best" in str(tuner.draw(522, spec.search_space, {}).system_attrs[BECAUSE])


def loss_told(drawn: DrawnParams, number: int, noise: float = 0.0) -> HistoryTrial:
    rate, units = math.log10(float(drawn.params["rate"])), math.log2(float(drawn.params["units"]))  # type: ignore[arg-type]
    loss = noise + (rate + 3) ** 2 + math.sin(3 * units) + 0.5 * (drawn.params["kind"] == 1)
    return HistoryTrial(number, TrialState.COMPLETE, drawn.params, (loss,), (), drawn.system_attrs)


def test_how_far_trials_reach_is_measured_on_each_axis_and_choices_reach_everywhere() -> None:
    spec = spec_of("gp")
    cube = Cube(Axes(spec.search_space, spec.search_space))
    everywhere = cube.anywhere(2_000, 0, 0)
    assert cube.extent(everywhere) == pytest.approx(np.ones(len(cube)), abs=0.05)
    close = cube.around(everywhere[:1], 500, 0.01, 0, 0, "close")
    reached = dict(zip(("rate", "units", "kind", "momentum"), cube.extent(close), strict=True))
    assert reached["rate"] == pytest.approx(0.01 * math.sqrt(12), rel=0.3)
    assert reached["kind"] == 1
    assert (cube.extent(everywhere[:1]) > 0).all()  # a single one


def test_length_scales_are_expected_in_units_of_how_far_the_trials_reach() -> None:
    generator = np.random.default_rng(3)
    points, axis_of = generator.random((40, 2)), np.array([0, 1])
    values = np.sin(6 * points[:, 0]) + points[:, 1]
    whole = fitted(points, axis_of, values, NOISE)
    small = fitted(0.01 * points, axis_of, values, NOISE, np.array([0.01, 0.01]))
    assert np.log(small.lengths) == pytest.approx(np.log(0.01 * whole.lengths), abs=0.03)
    assert np.log(small.noise) == pytest.approx(np.log(whole.noise), abs=0.03)


def test_a_pruned_trial_is_told_for_what_it_would_have_become() -> None:
    gains = LaterGains()
    for number, final in enumerate((0.9, 0.8, 0.7)):
        reports = tuple((step, final - 0.5 / step) for step in range(1, 11))
        gains.absorb(HistoryTrial(number, TrialState.COMPLETE, {}, (final,), reports))
    assert gains.after(1) == pytest.approx(0.5)
    assert gains.after(10) == pytest.approx(0.05)
    assert LaterGains().after(3) == 0.0


@pytest.mark.parametrize("sampler", ["gp", "auto"])
def test_a_draw_keeps_what_an_enqueue_gave(sampler: str) -> None:
    spec = spec_of(sampler)
    tuner = Tuner(spec)
    for number in range(15):
        drawn = tuner.draw(number, spec.search_space, {})
        tuner.absorb(
            [HistoryTrial(number, TrialState.COMPLETE, drawn.params, (float(number),), (), drawn.system_attrs)]
        )
    drawn = tuner.draw(15, spec.search_space, {"kind": True, "rate": 0.5})
    assert drawn.params["kind"] is True
    assert drawn.params["rate"] == 0.5
    assert 0.0 <= float(drawn.params["momentum"]) <= 0.99  # type: ignore[arg-type]
