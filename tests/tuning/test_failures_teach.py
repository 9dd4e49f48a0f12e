"""A trial that was told as FAIL counts as worse than every one that came through, for each sampler that learns."""

from __future__ import annotations

from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState, has_failed_in_training
from hpo_service.tuning.tuner import Tuner

EDGE = 0.52


def failures(sampler: str, directions: int, seed: int, teaches: bool, **options: Any) -> int:
    """How many of 60 trials lie beyond the edge, where training fails; the best ones lie just before it."""
    reals = {"type": "float", "low": 0, "high": 1}
    spec = StudySpec.model_validate(
        {
            "name": "cliff",
            "directions": ["minimize"] * directions,
            "search_space": {"x": reals, "y": reals},
            "sampler": {"name": sampler, "seed": seed, "params": options},
        }
    )
    tuner, failed = Tuner(spec), 0
    for number in range(60):
        drawn = tuner.draw(number, spec.search_space, {})
        x, y = float(drawn.params["x"]), float(drawn.params["y"])  # type: ignore[arg-type]
        state = TrialState.FAIL if x > EDGE else TrialState.COMPLETE
        values = None if x > EDGE else (0.5 - x + (y - 0.3) ** 2, y)[:directions]
        failed += x > EDGE
        attrs, failing = drawn.system_attrs, teaches and x > EDGE
        tuner.absorb([HistoryTrial(number, state, drawn.params, values, (), attrs, failed_in_training=failing)])
    return failed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "directions", "options"),
    [
        ("tpe", 1, {}),
        ("tpe", 1, {"multivariate": False}),
        ("tpe", 1, {"group": True}),
        ("tpe", 2, {}),
        ("cmaes", 1, {}),
        ("gp", 1, {}),
        ("auto", 1, {}),
    ],
)
def test_fewer_trials_fail_where_failures_teach(sampler: str, directions: int, options: dict[str, Any]) -> None:
    taught = [failures(sampler, directions, seed, teaches=True, **options) for seed in (1, 2, 3)]
    untaught = [failures(sampler, directions, seed, teaches=False, **options) for seed in (1, 2, 3)]
    assert sum(taught) < sum(untaught)


@pytest.mark.parametrize("directions", [1, 2])
def test_failures_fill_a_generation_of_nsgaii_and_are_no_parents(directions: int) -> None:
    by_chance = sum(failures("random", directions, seed, teaches=True) for seed in (1, 2, 3))
    bred = sum(failures("nsgaii", directions, seed, teaches=True, population_size=8) for seed in (1, 2, 3))
    assert bred < by_chance


@pytest.mark.parametrize(
    ("state", "reason", "stop", "teaches"),
    [
        (TrialState.FAIL, "CUDA out of memory", None, True),
        (TrialState.FAIL, "nan", None, True),
        (TrialState.FAIL, None, None, True),
        (TrialState.FAIL, "no longer finite", "pruned", True),
        (TrialState.FAIL, "attempts_exhausted", None, False),
        (TrialState.FAIL, "attempts_exhausted: the machine went away", None, False),
        (TrialState.FAIL, "study_stopped", None, False),
        (TrialState.FAIL, "study_cancelled", None, False),
        (TrialState.FAIL, "stopped", "stopped", False),
        (TrialState.FAIL, "interrupted", "stopped", False),
        (TrialState.COMPLETE, None, None, False),
        (TrialState.WAITING, None, None, False),
    ],
)
def test_what_the_service_or_a_person_has_ended_teaches_nothing(
    state: TrialState, reason: str | None, stop: str | None, teaches: bool
) -> None:
    assert has_failed_in_training(state, reason, stop) is teaches


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "auto", "nsgaii"])
def test_a_study_of_which_every_trial_has_failed_goes_on(sampler: str) -> None:
    reals = {"type": "float", "low": 0, "high": 1}
    spec = StudySpec.model_validate(
        {"name": "s", "search_space": {"x": reals, "y": reals}, "sampler": {"name": sampler, "seed": 1}}
    )
    tuner, drawn = Tuner(spec), []
    for number in range(30):
        one = tuner.draw(number, spec.search_space, {})
        drawn.append(one.params["x"])
        tuner.absorb(
            [HistoryTrial(number, TrialState.FAIL, one.params, None, (), one.system_attrs, failed_in_training=True)]
        )
    assert len(set(drawn)) == 30
