"""Advice on what was found: whether there is enough of it, whether the best is the best, whether more will come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median_high

from hpo_service.domain.advice_input import Advice, AdviceInput, AdviceTrial, can_vary
from hpo_service.domain.choices import identity
from hpo_service.domain.sampler_facts import SAMPLER_FACTS
from hpo_service.domain.search_space import AnyParameter, CategoricalParameter
from hpo_service.domain.steps import grid_size
from hpo_service.domain.student import difference, variance
from hpo_service.domain.study import StudyState
from hpo_service.domain.wording_of_numbers import count, shown

A_PARAMETER = 10  # trials
FEWEST_COMPLETE = 10
FEWEST_FITTED = 20
FEWEST_REPEATS = 3  # degrees of freedom of a noise estimate
COUNTS_FROM = 0.08  # share of the best's lead over the median: less noise than that costs nothing
ALONE = 0.15  # share of the best's lead over the median
FEWEST_SINCE, LONG = 50, 100  # trials since the best one
SURE = 1.96  # standard errors
MOST_NAMED = 9


def few_trials(seen: AdviceInput) -> Iterator[Advice]:
    varied = [name for name, given in seen.space.items() if can_vary(given)]
    counts, study = seen.study.counts, seen.study
    finished = counts.came_through + counts.fail
    to_come = study.spec.limits.trials if study.state in (StudyState.ACTIVE, StudyState.PAUSED) else None
    trials = max(finished, to_come or 0)
    wanted = A_PARAMETER * len(varied)
    if 0 < finished < _combinations(seen) and trials < wanted and not study.exhausted:
        yield Advice(
            "few_trials",
            None,
            f"{count(trials, 'trial')} for {count(len(varied), 'parameter')}: with fewer than {A_PARAMETER} a "
            f"parameter, the best is a first impression; {wanted} would do",
            {"trials": trials, "parameters": len(varied)},
            {"limits": {"trials": wanted}},
        )


def _combinations(seen: AdviceInput) -> float:
    """How many points the search space has, at most."""
    return math.prod(map(_values, seen.study.spec.search_space.root.values()))


def _values(given: AnyParameter) -> float:
    if isinstance(given, CategoricalParameter):
        return len(given.choices)
    step = given.step or (1 if given.type == "int" else None)
    return math.inf if step is None else grid_size(given.low, given.high, step)


def within_noise(seen: AdviceInput) -> Iterator[Advice]:
    """The best cannot be told from the next ones, and the noise is so large that it matters which one is taken."""
    if seen.study.confirmation is not None:
        yield from _tied(seen)
        return
    noise = _noise(seen) if seen.has_one_direction and (seen.complete or 0) >= FEWEST_COMPLETE else None
    if noise is None or len(seen.best) < 2:
        return
    deviation, source = noise
    best, *others = seen.best
    ahead = abs(best.told - _median(seen))
    reach = SURE * math.sqrt(2) * deviation
    near = [each.number for each in others if _off(best, each) < reach and each.params != best.params][:MOST_NAMED]
    if near and math.isfinite(ahead) and deviation > COUNTS_FROM * ahead:
        yield Advice(
            "within_noise",
            None,
            f"trial {best.number} ({shown(best.told)}) cannot be told from {_named(near)}: one training differs from "
            f"the next by {deviation:.2g} (standard deviation, {source}); confirm the best with fresh seeds",
            {"best": best.number, "near": near, "noise": deviation, "from": source},
            {"confirm": {"top": len(near) + 1, "seeds": 5}},
        )


def _median(seen: AdviceInput) -> float:
    return median_high(trial.told for trial in seen.completed)


def _off(one: AdviceTrial, other: AdviceTrial) -> float:
    return abs(difference(one.told, other.told))


def _named(numbers: list[int]) -> str:
    return f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers))}"


def _tied(seen: AdviceInput) -> Iterator[Advice]:
    tied, winner = list(seen.ranking.tied), seen.ranking.winner
    if tied and not seen.study.is_confirming:
        yield Advice(
            "within_noise",
            None,
            f"trial {winner} cannot be told from {_named(tied)} even by fresh trainings: take whichever costs least",
            {"best": winner, "near": tied, "from": "replicates"},
        )


def _noise(seen: AdviceInput) -> tuple[float, str] | None:
    """The standard deviation of one training, and what it is known from; None: the values show none."""
    groups: dict[object, list[float]] = {}
    for trial in seen.completed:
        if math.isfinite(trial.told):
            key = tuple((name, identity(value)) for name, value in sorted(trial.params.items()))
            groups.setdefault(key, []).append(trial.told)
    repeated = [values for values in groups.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    if degrees >= FEWEST_REPEATS:
        return math.sqrt(sum((len(some) - 1) * variance(some) for some in repeated) / degrees), "repeated params"
    fitted = [fit.noise for fit in seen.fits if fit.noise is not None and fit.trials >= FEWEST_FITTED]
    return (fitted[0], "a smooth fit") if fitted else None


def stagnation(seen: AdviceInput) -> Iterator[Advice]:
    """Nothing better has come for long, and this means something: the sampler learns, or the best stands alone.

    With random draws it means nothing: the best of 200 is as likely as not to be among the first 100, and that of 400
    among the last 200.
    """
    complete, since = seen.complete, seen.since
    if complete is None or since is None or since < FEWEST_SINCE:
        return
    share = (complete - since) / complete  # of all trials when the best one came
    sampler = SAMPLER_FACTS[seen.study.spec.sampler.name]
    learned = sampler.learns and ((since >= LONG and share <= 1 / 3) or share <= 0.03)
    if learned or (share <= 0.2 and _stands_alone(seen)):
        yield Advice(
            "stagnation",
            None,
            f"nothing better in the last {since} of {complete} COMPLETE trials: more of them are not likely to help; "
            "search another range, or stop here",
            {"since": since, "complete": complete, "best": seen.best[0].number if seen.best else None},
        )


def _stands_alone(seen: AdviceInput) -> bool:
    """Whether the best is so far ahead of the second that they can hardly be neighbours."""
    if len(seen.best) < 2:
        return False
    return _off(seen.best[0], seen.best[1]) > ALONE * abs(difference(seen.best[0].told, _median(seen)))
