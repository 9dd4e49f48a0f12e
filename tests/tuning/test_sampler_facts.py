"""What is said of a sampler beside its code is so: whether it learns, and whether results change what it draws."""

from __future__ import annotations

from typing import get_args

import pytest

from hpo_service.domain.objectives import OBJECTIVES, built_in
from hpo_service.domain.sampler_facts import SAMPLER_FACTS, SamplerName, draws_ahead
from hpo_service.domain.search_space import Params
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.samplers import SAMPLERS, is_quick
from hpo_service.tuning.tuner import Tuner

SPACE = {"x": {"type": "int", "low": 1, "high": 9}, "y": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.0001}}
DRAWN = 30


def spec(sampler: str) -> StudySpec:
    params = {"n_startup_trials": 5} if sampler in ("tpe", "cmaes") else {}
    params |= {"population_size": 5} if sampler == "nsgaii" else {}
    asked = {"name": sampler, "seed": 3, "params": params}
    return StudySpec.model_validate({"name": "s", "search_space": SPACE, "sampler": asked})


def drawn(sampler: str, sign: float) -> list[Params]:
    """What is drawn one after the other when the results are these; sign 0: when nothing is shown to the sampler."""
    study = spec(sampler)
    tuner = Tuner(study)
    found: list[Params] = []
    for number in range(DRAWN):
        draw = tuner.draw(number, study.search_space, {})
        found.append(dict(draw.params))
        x = draw.params["x"]
        assert isinstance(x, int)
        if sign:
            values, attrs = (sign * x,), draw.system_attrs
            tuner.absorb([HistoryTrial(number, TrialState.COMPLETE, draw.params, values, system_attrs=attrs)])
    return found


def test_a_sampler_of_a_newer_server_is_not_drawn_ahead_of() -> None:
    assert [name for name in ("random", "tpe", "of the next version") if draws_ahead(name)] == ["random"]


def test_every_table_has_every_sampler() -> None:
    assert set(SAMPLER_FACTS) == set(SAMPLERS) == set(get_args(SamplerName))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_results_change_the_draws_of_those_that_do_not_draw_ahead(sampler: str) -> None:
    assert (drawn(sampler, 1.0) == drawn(sampler, -1.0)) == SAMPLER_FACTS[sampler].draws_ahead


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_who_does_not_learn_draws_the_same_without_a_history(sampler: str) -> None:
    assert (drawn(sampler, 1.0) == drawn(sampler, 0.0)) == (not SAMPLER_FACTS[sampler].learns)


def test_the_quick_ones_are_drawn_where_the_calls_are_written() -> None:
    assert {name for name in SAMPLERS if is_quick(spec(name))} == {"random", "qmc", "grid", "tpe"}


def test_an_objective_of_the_users_is_none_of_the_table() -> None:
    assert built_in(None) is built_in({}) is built_in({"kind": "mine"}) is built_in({"kind": 3}) is None
    assert [built_in({"kind": kind}) for kind in OBJECTIVES] == list(OBJECTIVES.values())
