"""The samplers by name: what options each has, what it cannot do, and how it is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optuna.exceptions import ExperimentalWarning

from hpo_service.domain.errors import Fault
from hpo_service.domain.json_pointer import pointer
from hpo_service.domain.search_space import CategoricalParameter, FloatParameter
from hpo_service.domain.steps import is_too_fine
from hpo_service.domain.study import StudySpec
from hpo_service.tuning.algorithm_options import (
    BOOLEAN,
    BOOLEAN_OR_NULL,
    Options,
    faults,
    integer,
    number,
    one_of,
    or_null,
)
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.cmaes import CmaEs
from hpo_service.tuning.draw_cost import (
    CANDIDATES,
    POPULATION,
    QUICK_SECONDS,
    DrawCost,
    always,
    grid_seconds,
    nsgaii_seconds,
    tpe_seconds,
)
from hpo_service.tuning.drawing import Sampler
from hpo_service.tuning.grid_search import MOST_CONTEXTS, Grid, GridSearch, TooEntangled
from hpo_service.tuning.nsgaii import Nsga2
from hpo_service.tuning.qmc import QuasiRandom
from hpo_service.tuning.random_search import RandomSearch


@dataclass(frozen=True)
class SamplerKind:
    """
    draw_cost  how long a draw takes, by what the study asks for
    refusals   what it cannot do with this study, each at its place
    """

    make: Callable[[StudySpec, int], Sampler]
    options: Options
    draw_cost: DrawCost
    refusals: Callable[[StudySpec], list[Fault]] = lambda spec: []


def tpe_refusals(spec: StudySpec) -> list[Fault]:
    params = spec.sampler.params
    if params.get("group") is True and params.get("multivariate") is False:
        return [Fault("/sampler/params/group", "group models parameters jointly, so multivariate may not be false")]
    return []


def grid_refusals(spec: StudySpec) -> list[Fault]:
    found = [
        Fault(
            pointer("search_space", name),
            f"grid needs a finite number of points, but {name} is continuous: give it a step, make it int or choices",
        )
        for name, parameter in spec.search_space.items()
        if isinstance(parameter, FloatParameter) and parameter.step is None and parameter.low < parameter.high
    ]
    if spec.narrowing is not None:
        found.append(Fault("/narrowing", "a grid is drawn point by point and cannot be narrowed; use random or tpe"))
    if found:
        return found
    try:
        Grid(Axes(spec.search_space, spec.search_space))
    except TooEntangled:
        detail = f"the conditions depend on more than {MOST_CONTEXTS:,} combinations of choices: too many for a grid"
        return [Fault("/search_space", detail)]
    return []


def cmaes_refusals(spec: StudySpec) -> list[Fault]:
    params = spec.sampler.params
    chosen = [name for name in ("use_separable_cma", "with_margin", "lr_adapt") if params.get(name) is True]
    exclusive = [
        Fault(pointer("sampler", "params", name), f"{name} cannot be combined with {chosen[0]}") for name in chosen[1:]
    ]
    return [*exclusive, *one_direction(spec), *no_choices(spec)]


def no_choices(spec: StudySpec) -> list[Fault]:
    return [
        Fault(
            pointer("search_space", name),
            f"{spec.sampler.name} models numbers only, but {name} is categorical; use tpe, nsgaii or random, "
            'or say "ordered": true if its choices stand in an order',
        )
        for name, parameter in spec.search_space.items()
        if isinstance(parameter, CategoricalParameter) and not parameter.ordered
    ]


def one_direction(spec: StudySpec) -> list[Fault]:
    if len(spec.directions) == 1:
        return []
    count = len(spec.directions)
    detail = f"{spec.sampler.name} optimizes one direction; this study has {count}; use tpe or nsgaii"
    return [Fault("/directions", detail)]


# These import SciPy, which takes a quarter of the time of a start: the server imports them once it answers.


def _auto(spec: StudySpec, seed: int) -> Sampler:
    from hpo_service.tuning.auto import auto

    return auto(seed, spec.directions, spec.search_space)


def _tpe(spec: StudySpec, seed: int) -> Sampler:
    from hpo_service.tuning.tpe import tpe

    return tpe(seed, spec.directions, spec.search_space, spec.sampler.params)


def _gp(spec: StudySpec, seed: int) -> Sampler:
    from hpo_service.tuning.gp import gp

    return gp(seed, spec.directions, spec.search_space, spec.sampler.params)


# Whether it learns, and may draw ahead, is known without Optuna: hpo_service/domain/sampler_facts.py.
SAMPLERS: Mapping[str, SamplerKind] = {
    "auto": SamplerKind(
        _auto,
        {},
        always(0.05),  # as gp
    ),
    "random": SamplerKind(lambda spec, seed: RandomSearch(seed), {}, always(0.0)),
    "tpe": SamplerKind(
        _tpe,
        {
            "n_startup_trials": integer(0),
            "n_ei_candidates": integer(1, 10_000),
            "multivariate": BOOLEAN_OR_NULL,
            "group": BOOLEAN,
            "constant_liar": BOOLEAN,
        },
        DrawCost(tpe_seconds, "n_ei_candidates", CANDIDATES),
        tpe_refusals,
    ),
    "cmaes": SamplerKind(
        lambda spec, seed: CmaEs(seed, spec.directions[0], spec.sampler.params),
        {
            "n_startup_trials": integer(0),
            "popsize": or_null(integer(2, 10_000)),
            "consider_pruned_trials": BOOLEAN,
            "use_separable_cma": BOOLEAN,
            "with_margin": BOOLEAN,
            "lr_adapt": BOOLEAN,
            "warn_independent_sampling": BOOLEAN,
        },
        always(0.01),  # a matrix of at most 100 rows is decomposed
        cmaes_refusals,
    ),
    "gp": SamplerKind(
        _gp,
        {
            "n_startup_trials": or_null(integer(0, 10_000)),
            "deterministic_objective": BOOLEAN,
            "warn_independent_sampling": BOOLEAN,
        },
        always(0.05),  # it fits its kernel
        one_direction,
    ),
    "qmc": SamplerKind(
        lambda spec, seed: QuasiRandom(seed, len(spec.search_space), **spec.sampler.params),  # type: ignore[arg-type]
        {
            "qmc_type": one_of("sobol", "halton"),
            "scramble": BOOLEAN,
            "warn_asynchronous_seeding": BOOLEAN,
            "warn_independent_sampling": BOOLEAN,
        },
        always(0.0),
    ),
    "nsgaii": SamplerKind(
        lambda spec, seed: Nsga2(seed, spec.directions, spec.sampler.params),
        {
            "population_size": integer(2, 10_000),
            "mutation_prob": or_null(number(0, 1)),
            "crossover_prob": number(0, 1),
            "swapping_prob": number(0, 1),
        },
        DrawCost(nsgaii_seconds, "population_size", POPULATION),
    ),
    "grid": SamplerKind(lambda spec, seed: GridSearch(seed), {}, DrawCost(grid_seconds), grid_refusals),
}


def too_fine(spec: StudySpec) -> list[Fault]:
    """A grid whose neighbouring values a double cannot tell apart has no exact values to draw."""
    found = []
    for name, parameter in spec.search_space.items():
        if not isinstance(parameter, FloatParameter) or parameter.step is None or parameter.low == parameter.high:
            continue
        if is_too_fine(parameter.low, parameter.high, parameter.step):
            largest = max(abs(parameter.low), abs(parameter.high))
            detail = f"step ({parameter.step:g}) is too fine for numbers as large as {largest:g}: no exact grid"
            found.append(Fault(pointer("search_space", name, "step"), detail))
    return found


def check_sampler(spec: StudySpec) -> list[Fault]:
    name = spec.sampler.name
    kind = SAMPLERS[name]
    found = faults(f"the sampler {name}", kind.options, spec.sampler.params, "/sampler/params")
    return [*found, *too_fine(spec)] or kind.refusals(spec) or kind.draw_cost.faults(spec)


def is_quick(spec: StudySpec) -> bool:
    """Whether a draw takes a few milliseconds at most, at any size of the study."""
    return SAMPLERS[spec.sampler.name].draw_cost.of(spec) <= QUICK_SECONDS


def make_sampler(spec: StudySpec) -> Sampler:
    # Whoever sets an experimental option has chosen it.
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    assert spec.sampler.seed is not None
    return SAMPLERS[spec.sampler.name].make(spec, spec.sampler.seed)
