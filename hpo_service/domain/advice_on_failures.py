"""Advice on trials that fail: where in the space they do, and whether it is one machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpo_service.domain.advice_input import Advice, AdviceInput, AdviceTrial
from hpo_service.domain.choices import identity
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import CategoricalParameter, NumericParameter, Value
from hpo_service.domain.trial import TrialState
from hpo_service.domain.wording_of_numbers import shown

FEWEST_FAILURES = 5
MOST = 0.6  # the share of the failures that has to lie in the region
SURELY = 10.0  # log likelihood ratio: the failures with the region against those without
PLACES = 20  # quantiles at which regions begin and end
FEWEST_OF_A_WORKER = 3
BY_CHANCE = 0.005


@dataclass(frozen=True)
class _Region:
    """A part of a parameter's range or one of its choices. trials, failed: how many lie in it."""

    where: Json
    words: str
    trials: int
    failed: int


def failures(seen: AdviceInput) -> Iterator[Advice]:
    """The region that holds most of the failures, if hardly any trial fails outside of it."""
    if _bad_workers(seen):
        return
    found: list[tuple[float, str, _Region, int, int]] = []
    for name, given in seen.space.items():
        told = [(trial.params[name], trial.failed) for trial in seen.trials if name in trial.params and _counts(trial)]
        failed = sum(fails for _, fails in told)
        if failed < FEWEST_FAILURES:
            continue
        for region in _choices(told) if isinstance(given, CategoricalParameter) else _intervals(given, told):
            surely = _surely(region, len(told), failed)
            if region.failed >= MOST * failed and surely >= SURELY:
                found.append((surely, name, region, len(told), failed))
    if found:
        _, name, region, trials, failed = max(found, key=lambda each: each[0])
        outside = trials - region.trials
        yield Advice(
            "failures",
            name,
            f"{region.failed} of the {failed} failed trials have {name} {region.words}, where {region.trials} ran; "
            f"of the {outside} others {failed - region.failed} failed",
            {**region.where, "failed": region.failed, "trials": region.trials, "failed_in_all": failed, "of": trials},
            _suggestion(seen, name, region),
        )


def _counts(trial: AdviceTrial) -> bool:
    """Whether the trial says something about its params: not if the service has ended it."""
    return trial.failed or trial.state is not TrialState.FAIL


def _choices(told: Sequence[tuple[Value, bool]]) -> Iterator[_Region]:
    by_choice: dict[object, list[tuple[Value, bool]]] = {}
    for value, failed in told:
        by_choice.setdefault(identity(value), []).append((value, failed))
    for some in by_choice.values():
        value = some[0][0]
        yield _Region({"choice": value}, shown(value), len(some), sum(failed for _, failed in some))


def _intervals(given: NumericParameter, told: Sequence[tuple[Value, bool]]) -> Iterator[_Region]:
    """The intervals between any two of PLACES quantiles, the first failure and the last."""
    ordered = sorted((float(value), failed) for value, failed in told if isinstance(value, int | float))
    before = [0]
    for _, failed in ordered:
        before.append(before[-1] + failed)
    cuts = sorted({round(k * len(ordered) / PLACES) for k in range(PLACES + 1)} | _turns(ordered))
    for start in cuts:
        for end in cuts:
            if start < end and (start > 0 or end < len(ordered)):
                low, high = ordered[start][0], ordered[end - 1][0]
                whole_low, whole_high = start == 0, end == len(ordered)
                words = f"up to {shown(high)}" if whole_low else f"from {shown(low)} up"
                if not whole_low and not whole_high:
                    words = f"between {shown(low)} and {shown(high)}"
                where = {"low": given.low if whole_low else low, "high": given.high if whole_high else high}
                yield _Region(where, words, end - start, before[end] - before[start])


def _turns(ordered: Sequence[tuple[float, bool]]) -> set[int]:
    """Where the first and the last failure are: the region may begin or end right there."""
    places = [place for place, (_, failed) in enumerate(ordered) if failed]
    return {places[0], places[-1] + 1} if places else set()


def _surely(region: _Region, trials: int, failed: int) -> float:
    """Log likelihood ratio: a failure rate of the region's own against one rate; 0 if its rate is not far higher."""
    outside, failed_outside = trials - region.trials, failed - region.failed
    if outside == 0 or region.failed / region.trials < max(0.5, 3 * failed_outside / outside):
        return 0.0
    inside = _log_likelihood(region.failed, region.trials) + _log_likelihood(failed_outside, outside)
    return inside - _log_likelihood(failed, trials)


def _log_likelihood(failed: int, trials: int) -> float:
    others = trials - failed
    return sum(count * math.log(count / trials) for count in (failed, others) if count)


def _suggestion(seen: AdviceInput, name: str, region: _Region) -> Json | None:
    """What to search instead: the range cut at the region, if it lies at an end, or the other choices."""
    given = seen.space[name]
    if isinstance(given, CategoricalParameter):
        rest = [choice for choice in given.choices if identity(choice) != identity(region.where["choice"])]
        return {"parameter": name, "choices": rest} if rest else None
    if region.where["high"] == given.high and region.where["low"] > given.low:
        return {"parameter": name, "high": region.where["low"]}
    if region.where["low"] == given.low and region.where["high"] < given.high:
        return {"parameter": name, "low": region.where["high"]}
    return None


def workers(seen: AdviceInput) -> Iterator[Advice]:
    for worker_id, (told, failed), (of_others, failed_others) in _bad_workers(seen):
        yield Advice(
            "workers",
            None,
            f"worker {worker_id} failed in {failed} of its {told} trials, the others in {failed_others} of "
            f"{of_others}: look at its machine",
            {
                "worker_id": worker_id,
                "trials": told,
                "failed": failed,
                "others": of_others,
                "others_failed": failed_others,
            },
            {"drain": worker_id},
        )


def _bad_workers(seen: AdviceInput) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    """The workers that fail in most of their trials while the others hardly do, more often than by chance."""
    trials = sum(told for told, _ in seen.workers.values())
    failed = sum(fails for _, fails in seen.workers.values())
    found = []
    for worker_id, (told, fails) in seen.workers.items():
        others, failed_others = trials - told, failed - fails
        if fails < max(FEWEST_OF_A_WORKER, told / 2) or failed_others > others / 4:
            continue
        if _so_many_by_chance(fails, told, failed, trials) * len(seen.workers) < BY_CHANCE:
            found.append((worker_id, (told, fails), (others, failed_others)))
    return found


def _so_many_by_chance(fails: int, told: int, failed: int, trials: int) -> float:
    """The probability of at least so many failures at this worker, if they fell on trials at random (Fisher)."""
    first = _log_choose(trials, told)
    return sum(
        math.exp(_log_choose(failed, k) + _log_choose(trials - failed, told - k) - first)
        for k in range(fails, min(told, failed) + 1)
        if told - k <= trials - failed
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
