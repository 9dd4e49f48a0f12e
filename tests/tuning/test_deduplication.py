"""In a finite search space no combination comes twice while another is left."""

from __future__ import annotations

from typing import Any

import pytest

from hpo_service.domain.sampler_facts import SAMPLER_FACTS
from hpo_service.domain.search_space import Params
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import DrawnParams, Tuner

WITH_CHOICES = {
    "units": {"type": "int", "low": 1, "high": 4},
    "rate": {"type": "float", "low": 0.1, "high": 0.3, "step": 0.1},
    "kind": {"type": "categorical", "choices": ["a", "b"]},
    "momentum": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.5, "when": {"kind": ["b"]}},
}
COMBINATIONS = 4 * 3 + 4 * 3 * 2
NUMBERS = {"units": {"type": "int", "low": 1, "high": 6}, "more": {"type": "int", "low": 0, "high": 5}}


def tuner_of(sampler: str, space: dict[str, Any]) -> tuple[Tuner, StudySpec]:
    spec = StudySpec.model_validate({"name": "s", "search_space": space, "sampler": {"name": sampler, "seed": 1}})
    return Tuner(spec), spec


def told(number: int, drawn: DrawnParams, **fields: Any) -> HistoryTrial:
    return HistoryTrial(
        number, TrialState.COMPLETE, drawn.params, (float(number % 7),), (), drawn.system_attrs, **fields
    )


def known(params: Params) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


@pytest.mark.parametrize("sampler", sorted(SAMPLER_FACTS.keys() - {"grid", "cmaes"}))
def test_every_combination_comes_once_before_any_comes_again(sampler: str) -> None:
    tuner, spec = tuner_of(sampler, WITH_CHOICES)
    given = []
    for number in range(COMBINATIONS + 4):
        drawn = tuner.draw(number, spec.search_space, {})
        given.append(known(drawn.params))
        tuner.absorb([told(number, drawn)])
    assert len(set(given[:COMBINATIONS])) == COMBINATIONS


def test_cmaes_repeats_no_numbers_either() -> None:
    tuner, spec = tuner_of("cmaes", NUMBERS)
    given = []
    for number in range(36):
        drawn = tuner.draw(number, spec.search_space, {})
        given.append(known(drawn.params))
        tuner.absorb([told(number, drawn)])
    assert len(set(given)) == 36


def test_an_imported_combination_comes_after_those_that_nobody_has_tried() -> None:
    tuner, spec = tuner_of("random", NUMBERS)
    imported: list[Params] = [{"units": 1, "more": k} for k in range(6)]
    for number, params in enumerate(imported):
        tuner.absorb([told(number, DrawnParams(params), was_given_out=False)])
    given = []
    for number in range(6, 6 + 36):
        drawn = tuner.draw(number, spec.search_space, {})
        given.append(known(drawn.params))
        tuner.absorb([told(number, drawn)])
    assert len(set(given)) == 36
    assert set(given[30:]) == {known(params) for params in imported}


def test_a_restart_draws_what_would_have_been_drawn() -> None:
    tuner, spec = tuner_of("tpe", WITH_CHOICES)
    past: list[HistoryTrial] = []
    for number in range(30):
        restarted = Tuner(spec)
        restarted.absorb(past)
        drawn = tuner.draw(number, spec.search_space, {})
        assert restarted.draw(number, spec.search_space, {}) == drawn
        past.append(told(number, drawn))
        tuner.absorb(past[-1:])


def test_what_an_enqueue_gave_may_repeat() -> None:
    tuner, spec = tuner_of("random", NUMBERS)
    tuner.absorb([told(0, DrawnParams({"units": 1, "more": 1}))])
    assert tuner.draw(1, spec.search_space, {"units": 1, "more": 1}).params == {"units": 1, "more": 1}
