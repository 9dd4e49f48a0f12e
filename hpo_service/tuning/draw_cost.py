"""How long a draw takes at most, by what a study asks for: where it is made, and whether the study is refused.

In seconds of a core of an ordinary server, at any size of the history, of which samplers keep a bounded part. Measured;
a factor of two does not matter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from hpo_service.domain.errors import Fault
from hpo_service.domain.search_space import CategoricalParameter, FloatParameter
from hpo_service.domain.study import StudySpec
from hpo_service.tuning.axes import axis
from hpo_service.tuning.parzen import Coordinate

# What takes longer is drawn where it holds up nobody.
QUICK_SECONDS = 0.005
# What takes longer is not begun.
MOST_SECONDS = 3.0
CANDIDATES = 24
POPULATION = 50
# A grid of so many parameters, or with conditions, takes long to find its place in again.
SMALL_GRID = 16


@dataclass(frozen=True)
class PerParameter:
    """base: of one, whatever is drawn; candidate: more for each candidate."""

    base: float
    candidate: float


_OURS = {
    "smooth": PerParameter(0.06e-3, 0.15e-6),
    "cells": PerParameter(0.45e-3, 1.75e-6),
    "choices": PerParameter(0.05e-3, 0.55e-6),
}


def draw_seconds(spec: StudySpec) -> float:
    sampler = spec.sampler.name
    if sampler == "tpe":
        return tpe_seconds(spec, _candidates(spec))
    if sampler == "nsgaii":
        return nsgaii_seconds(spec, _population(spec))
    if sampler == "grid":
        return 0.0 if len(spec.search_space) <= SMALL_GRID and not spec.search_space.has_conditions() else 1.0
    return _OTHERS[sampler]


# CMA-ES and its like: a matrix of at most 100 rows is decomposed. gp fits its kernel.
_OTHERS: Mapping[str, float] = {"random": 0.0, "qmc": 0.0, "cmaes": 0.01, "gp": 0.3}


def tpe_seconds(spec: StudySpec, candidates: int) -> float:
    if len(spec.directions) > 1 or spec.sampler.params.get("group"):
        each = [_by_optuna(parameter, candidates) for parameter in spec.search_space.root.values()]
        return sum(each) + (0.0 if len(spec.directions) == 1 else 0.15)
    alone = 2.0 if spec.sampler.params.get("multivariate") is False else 1.0
    kinds = [_OURS[_kind(name, spec)] for name in spec.search_space.names()]
    return sum(alone * kind.base + candidates * kind.candidate for kind in kinds)


def _kind(name: str, spec: StudySpec) -> str:
    parameter = spec.search_space[name]
    coordinate = Coordinate.of(axis(name, parameter, parameter))
    if coordinate.is_choice:
        return "choices"
    return "cells" if coordinate.cells else "smooth"


def _by_optuna(parameter: object, candidates: int) -> float:
    base = 0.6e-3
    if isinstance(parameter, CategoricalParameter):
        return base + 3e-6 * len(parameter.choices) + 11e-6 * candidates
    if isinstance(parameter, FloatParameter) and parameter.step is None:
        return base + 12e-6 * candidates
    return base + 80e-6 * min(candidates, 1_000) + 7e-6 * candidates  # those with values of their own, of 1,000 cells


def nsgaii_seconds(spec: StudySpec, population: int) -> float:
    """Of the draw that chooses the parents of a generation: each is compared with each."""
    return 0.01 + 13e-9 * population**2 * len(spec.directions)


def _candidates(spec: StudySpec) -> int:
    value = spec.sampler.params.get("n_ei_candidates", CANDIDATES)
    return value if isinstance(value, int) else CANDIDATES


def _population(spec: StudySpec) -> int:
    value = spec.sampler.params.get("population_size", POPULATION)
    return value if isinstance(value, int) else POPULATION


def is_quick(spec: StudySpec) -> bool:
    """Whether a draw takes a few milliseconds at most, at any size of the study."""
    return draw_seconds(spec) <= QUICK_SECONDS


def too_slow(spec: StudySpec) -> list[Fault]:
    """That a draw would take longer than anybody can wait for, and what would not."""
    seconds = draw_seconds(spec)
    if seconds <= MOST_SECONDS:
        return []
    if spec.sampler.name == "nsgaii":
        what = f"a population of {_population(spec):,} in {len(spec.directions)} direction(s)"
        return [_fault("population_size", what, seconds, _most(_population(spec), partial(nsgaii_seconds, spec)))]
    categorical = [p for p in spec.search_space.root.values() if isinstance(p, CategoricalParameter)]
    choices = max((len(parameter.choices) for parameter in categorical), default=0)
    of_choices = f" (of up to {choices:,} choices)" if choices else ""
    what = f"{_candidates(spec):,} candidates × {len(spec.search_space)} parameters{of_choices}"
    return [_fault("n_ei_candidates", what, seconds, _most(_candidates(spec), partial(tpe_seconds, spec)))]


def _most(asked: int, seconds: Callable[[int], float]) -> int:
    """The most that can be drawn in time, below what was asked for."""
    return bisect_right(range(1, asked), MOST_SECONDS, key=seconds)


def _fault(option: str, what: str, seconds: float, most: int) -> Fault:
    detail = (
        f"{what} would take about {seconds:.1f} s a draw, and a draw may take {MOST_SECONDS:g} s; "
        f"with these parameters {option} may be at most {most:,}"
    )
    return Fault(f"/sampler/params/{option}", detail)
