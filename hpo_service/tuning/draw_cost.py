"""How long a draw takes at most, by the study's spec: this decides where it is made, and whether a study is refused.

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

# Draws that take longer are made in the drawing process.
QUICK_SECONDS = 0.005
# Studies whose draws take longer are refused.
MOST_SECONDS = 3.0
CANDIDATES = 24
POPULATION = 50
# In a grid of more parameters, or with conditions, it takes long to rank all past trials again.
SMALL_GRID = 16


# Seconds for a parameter of each kind: fixed, and for each candidate.
_OURS = {
    "smooth": (0.06e-3, 0.15e-6),
    "cells": (0.45e-3, 1.75e-6),
    "choices": (0.05e-3, 0.55e-6),
}


@dataclass(frozen=True)
class DrawCost:
    """
    seconds     of one draw of a study, with this value of the option
    option      the sampler's option by which a draw takes longer; "" where there is none
    default     its value where the study gives none
    """

    seconds: Callable[[StudySpec, int], float]
    option: str = ""
    default: int = 0

    def of(self, spec: StudySpec) -> float:
        return self.seconds(spec, self.asked(spec))

    def asked(self, spec: StudySpec) -> int:
        value = spec.sampler.params.get(self.option, self.default)
        return value if isinstance(value, int) else self.default

    def faults(self, spec: StudySpec) -> list[Fault]:
        """The fault that a draw would take longer than MOST_SECONDS, with the largest value of the option that fits."""
        seconds, asked = self.of(spec), self.asked(spec)
        if seconds <= MOST_SECONDS:
            return []
        most = bisect_right(range(1, asked), MOST_SECONDS, key=partial(self.seconds, spec))
        detail = (
            f"{_WHAT[self.option](spec, asked)} would take about {seconds:.1f} s a draw, and a draw may take "
            f"{MOST_SECONDS:g} s; with these parameters {self.option} may be at most {most:,}"
        )
        return [Fault(f"/sampler/params/{self.option}", detail)]


def always(seconds: float) -> DrawCost:
    return DrawCost(lambda _spec, _asked: seconds)


def grid_seconds(spec: StudySpec, _asked: int) -> float:
    return 0.0 if len(spec.search_space) <= SMALL_GRID and not spec.search_space.has_conditions() else 1.0


def tpe_seconds(spec: StudySpec, candidates: int) -> float:
    if len(spec.directions) > 1 or spec.sampler.params.get("group"):
        each = [_by_optuna(parameter, candidates) for parameter in spec.search_space.root.values()]
        return sum(each) + (0.0 if len(spec.directions) == 1 else 0.15)
    alone = 2.0 if spec.sampler.params.get("multivariate") is False else 1.0
    kinds = [_OURS[_kind(name, spec)] for name in spec.search_space.names()]
    return sum(alone * base + candidates * candidate for base, candidate in kinds)


def _kind(name: str, spec: StudySpec) -> str:
    from hpo_service.tuning.parzen import Coordinate  # and with it SciPy, which a start does without

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


def _candidates(spec: StudySpec, asked: int) -> str:
    categorical = [p for p in spec.search_space.root.values() if isinstance(p, CategoricalParameter)]
    choices = max((len(parameter.choices) for parameter in categorical), default=0)
    of_choices = f" (of up to {choices:,} choices)" if choices else ""
    return f"{asked:,} candidates × {len(spec.search_space)} parameters{of_choices}"


def _population(spec: StudySpec, asked: int) -> str:
    return f"a population of {asked:,} in {len(spec.directions)} direction(s)"


# By option: what takes long, in words.
_WHAT: Mapping[str, Callable[[StudySpec, int], str]] = {
    "n_ei_candidates": _candidates,
    "population_size": _population,
}
