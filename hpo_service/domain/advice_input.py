"""The input of advice: a study with its trials, or a sample of many; and the form of an item of advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpo_service.domain.choices import identity
from hpo_service.domain.confirmation import Ranking
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import AnyParameter, CategoricalParameter, Params, SearchSpace, Value
from hpo_service.domain.study import Study
from hpo_service.domain.trial import TrialState


@dataclass(frozen=True)
class Advice:
    """One thing worth saying of a study. suggestion: what to change, where that can be said."""

    code: str
    parameter: str | None
    detail: str
    evidence: Json
    suggestion: Json | None = None


@dataclass(frozen=True)
class AdviceTrial:
    """A finished trial of the search. value: the first one, if it is COMPLETE; failed: told as FAIL."""

    number: int
    state: TrialState
    params: Params
    value: float | None = None
    failed: bool = False
    reports: tuple[tuple[int, float], ...] = ()

    @property
    def told(self) -> float:
        """The value; only of a COMPLETE trial."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class SmoothFit:
    """A smooth function through some of the COMPLETE trials; each of these is predicted by a fit of the others.

    explained: the share of the values' variance that it predicts; without: the same without this parameter
    noise: the standard deviation that it leaves, None where the values show no noise
    """

    trials: int
    explained: float
    without: Mapping[str, float] = field(default_factory=dict)
    noise: float | None = None


@dataclass(frozen=True)
class AdviceInput:
    """
    space     the ranges that all rounds together have searched, with the choices first given
    trials    by number; an even sample where there are many
    best      the best COMPLETE ones, best first
    complete  how many are COMPLETE; since: how many of these came after the best one; both None with several directions
    workers   of each worker, how many trials it has told, and how many of these as FAIL
    curves    some COMPLETE trials with their reports, by number
    """

    study: Study
    space: Mapping[str, AnyParameter]
    trials: Sequence[AdviceTrial]
    best: Sequence[AdviceTrial] = ()
    complete: int | None = None
    since: int | None = None
    workers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fits: Sequence[SmoothFit] = ()
    ranking: Ranking = field(default_factory=Ranking)
    curves: Sequence[AdviceTrial] = ()

    @property
    def maximizes(self) -> bool:
        return self.study.spec.maximizes

    @property
    def has_one_direction(self) -> bool:
        return len(self.study.spec.directions) == 1

    @property
    def completed(self) -> list[AdviceTrial]:
        return [trial for trial in self.trials if trial.value is not None]


def searched_space(first: SearchSpace, rounds: Sequence[SearchSpace]) -> dict[str, AnyParameter]:
    """Each parameter with the range that all rounds together have searched."""
    found = dict(first.items())
    for space in rounds:
        for name, given in space.items():
            known = found.setdefault(name, given)
            if not isinstance(given, CategoricalParameter) and not isinstance(known, CategoricalParameter):
                low, high = min(known.low, given.low), max(known.high, given.high)
                found[name] = known.model_copy(update={"low": low, "high": high})
    return found


def distinct(values: Sequence[Value]) -> int:
    return len({identity(value) for value in values})


def can_vary(given: AnyParameter) -> bool:
    return len(given.choices) > 1 if isinstance(given, CategoricalParameter) else given.high > given.low
