"""Confirming the winner: the best trials are trained again with fresh seeds, the same ones for each of them.

The best value of many noisy trials is partly luck. The trial's replicates show what it is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpo_service.domain import measure
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.json_types import Json
from hpo_service.domain.student import difference, interval, mean, variance
from hpo_service.domain.trial import TrialState

_WAITING = ("queued", "retries")  # the fields of TrialCounts that count WAITING trials


@dataclass(frozen=True)
class Confirmation:
    """What was asked for, and how many replicates are on their way.

    candidates: the numbers of the trials that are confirmed, best first
    of_stopped: whether the study was STOPPED before; then it gives out its replicates and nothing else
    waiting, running: replicates in these states
    """

    top: int
    seeds: int
    candidates: tuple[int, ...]
    of_stopped: bool = False
    waiting: int = 0
    running: int = 0

    @property
    def is_under_way(self) -> bool:
        return self.waiting + self.running > 0

    def moved(self, before: str | None, after: str | None) -> Confirmation:
        """The confirmation after a replicate moved between fields of TrialCounts; before None: it is new."""
        waiting = self.waiting - (before in _WAITING) + (after in _WAITING)
        running = self.running - (before == "running") + (after == "running")
        return fast_replace(self, waiting=waiting, running=running)


@dataclass(frozen=True)
class Replicate:
    """A trial that trains the params of another one (`of`) again, with a seed that it shares with those of others."""

    of: int
    seed: int
    state: TrialState
    value: float | None


@dataclass(frozen=True)
class Confirmed:
    """What the COMPLETE replicates of a trial say. low, high: the 95 % interval of the mean; failed: so many FAILed."""

    number: int
    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    failed: int


@dataclass(frozen=True)
class Ranking:
    """The confirmed trials, best mean first, and the numbers of those that cannot be told from the first."""

    trials: tuple[Confirmed, ...] = ()
    tied: tuple[int, ...] = ()

    @property
    def winner(self) -> int | None:
        return self.trials[0].number if self.trials else None


def ranking(candidates: Sequence[int], replicates: Sequence[Replicate], *, maximize: bool) -> Ranking:
    """Rank the candidates of which at least two replicates are COMPLETE; equals stay in the candidates' order."""
    by_seed: dict[int, dict[int, float]] = {number: {} for number in candidates}
    failed = dict.fromkeys(candidates, 0)
    for each in replicates:
        if each.state is TrialState.COMPLETE and each.value is not None:
            by_seed[each.of][each.seed] = each.value
        failed[each.of] += each.state is TrialState.FAIL
    found = [_confirmed(number, told, failed[number]) for number, told in by_seed.items() if len(told) > 1]
    found.sort(key=lambda confirmed: confirmed.mean, reverse=maximize)  # stable: reverse, too, keeps equals in order
    first = by_seed[found[0].number] if found else {}
    tied = [other.number for other in found[1:] if _cannot_be_told_apart(first, by_seed[other.number])]
    return Ranking(tuple(found), tuple(tied))


def _confirmed(number: int, by_seed: dict[int, float], failed: int) -> Confirmed:
    values = tuple(by_seed.values())
    low, high = interval(values)
    return Confirmed(number, mean(values), low, high, values, failed)


def _cannot_be_told_apart(first: dict[int, float], other: dict[int, float]) -> bool:
    """Whether 0 lies in the interval of their differences at shared seeds: a seed brings both the same luck."""
    low, high = interval([difference(value, other[seed]) for seed, value in first.items() if seed in other])
    return low <= 0 <= high


def worth(trainings: Sequence[Sequence[float]]) -> list[float]:
    """What each trial is probably worth, from its trainings' values: at least two each, in the order of the seeds.

    The best of several means is too optimistic, too, if less so than a single value. So each is shrunk towards the mean
    of all, the more the less their differences stand out from the noise (Efron & Morris, 1975).
    """
    means = [mean(values) for values in trainings]
    if len(means) < 2 or not all(math.isfinite(value) for values in trainings for value in values):
        return means
    noise, seen = mean([variance(values) / len(values) for values in _without_seeds(trainings)]), variance(means)
    kept = max(0.0, 1 - noise / seen) if seen > 0 else 0.0
    middle = mean(means)
    return [middle + kept * (each - middle) for each in means]


def _without_seeds(trainings: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    """The values minus each seed's mean over the trials; unchanged where a training has failed."""
    if len({len(values) for values in trainings}) > 1:
        return trainings
    of_seeds = [mean(values) for values in zip(*trainings, strict=True)]
    # Subtracting the mean of so many trials takes away a share of the noise; this restores it.
    kept = math.sqrt(len(trainings) / (len(trainings) - 1))
    return [[kept * (value - of_seed) for value, of_seed in zip(values, of_seeds, strict=True)] for values in trainings]


def confirmation_resource(confirmation: Confirmation, found: Ranking) -> Json:
    return {
        "state": TrialState.RUNNING if confirmation.is_under_way else TrialState.COMPLETE,
        "top": confirmation.top,
        "seeds": confirmation.seeds,
        "ranking": [
            {
                "number": each.number,
                "mean": measure.to_json(each.mean),
                "low": measure.to_json(each.low),
                "high": measure.to_json(each.high),
                "values": [measure.to_json(value) for value in each.values],
                "failed": each.failed,
            }
            for each in found.trials
        ],
        "tied": list(found.tied),
    }
