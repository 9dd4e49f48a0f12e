"""What TPE learns from: the best trials and a fixed number of the others, however many there are.

Of a finished trial nothing changes any more, so each bound is kept as trials come in, and a draw costs the same at 100
and at 100,000 trials. Three bounded sets, which may overlap:

best     all that can count as good, of which TPE never takes more than 25, and the next after them: around the
         optimum the others' density has to be exact (of several directions: the least dominated)
recent   the last ones, where the search is now
spread   a sample of all, drawn by a hash of the number, so that it is the same on every server

A round with other ranges begins anew from all trials that lie inside them. One that lies outside is left out rather
than clipped: what it measured says nothing about the edge it would be moved to, and a crowd of clipped trials there
would look like evidence.
"""

from __future__ import annotations

import hashlib
import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.parzen import Coordinates, Floats, weights_by_age

MOST_GOOD = 25
BEST = 64
RECENT = 32
SPREAD = 64
RUNNING = 64

# By which finished trials are ordered, best first: those that are COMPLETE by value, then the PRUNED ones by how far
# they came and how they stood there. The number makes it strict.
Key = tuple[int, float, float, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """A trial as it is kept: without its reports but the last."""

    number: int
    state: TrialState
    params: Params
    values: tuple[float, ...] | None
    last_report: tuple[int, float] | None

    @classmethod
    def of(cls, trial: HistoryTrial) -> Seen:
        last = trial.reports[-1] if trial.reports else None
        return cls(trial.number, trial.state, trial.params, trial.values, last)


@dataclass(slots=True)
class Restated:
    """A trial in the ranges of the current round."""

    number: int
    seen: Seen
    numbers: dict[str, Any]
    key: Key
    _on: Coordinates | None = None
    _row: list[float] | None = None

    def row(self, on: Coordinates) -> list[float] | None:
        """Where the trial lies on these axes; None when it has not all of them. The last answer is kept."""
        if self._on is not on:
            self._on = on
            self._row = on.row(self.numbers) if all(name in self.numbers for name in on.names) else None
        return self._row


class BoundedHistory:
    def __init__(self, directions: Sequence[str]) -> None:
        self._signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
        self._all: dict[int, Seen] = {}
        self._axes: Axes | None = None
        self._forget()

    def _forget(self) -> None:
        self.finished = 0
        self._latest = 0
        self._best: list[tuple[Key, Restated]] = []
        self._recent: list[tuple[int, Restated]] = []
        self._spread: list[tuple[int, int, Restated]] = []
        self._running: dict[int, Restated] = {}

    def absorb(self, trial: HistoryTrial) -> None:
        before = self._all.get(trial.number)
        seen = Seen.of(trial)
        if seen == before:
            return
        self._all[trial.number] = seen
        if before is not None and before.state.is_finished:
            self._axes = None  # what was final has changed: begin anew at the next draw
        elif self._axes is not None:
            self._place(seen, self._axes)

    def enter(self, axes: Axes) -> None:
        """See the trials in the ranges of these axes from now on."""
        if axes is self._axes:
            return
        self._axes = axes
        self._forget()
        for number in sorted(self._all):
            self._place(self._all[number], axes)

    def _place(self, seen: Seen, axes: Axes) -> None:
        self._running.pop(seen.number, None)
        if seen.state is TrialState.FAIL or (seen.state is TrialState.COMPLETE and not seen.values):
            return
        if seen.state is TrialState.PRUNED and len(self._signs) > 1:
            return  # how far it came says nothing about several directions
        numbers = axes.numbers_of(seen.params)
        if numbers is None:
            return
        restated = Restated(seen.number, seen, numbers, self._key(seen))
        if not seen.state.is_finished:
            self._running[seen.number] = restated
            return
        self.finished += 1
        self._latest = max(self._latest, seen.number)
        insort(self._best, (restated.key, restated), key=lambda item: item[0])
        insort(self._recent, (-seen.number, restated), key=lambda item: item[0])
        insort(self._spread, (_hash(seen.number), seen.number, restated), key=lambda item: item[:2])
        del self._recent[RECENT:], self._spread[SPREAD:]
        if len(self._signs) == 1:
            del self._best[BEST:]
        elif len(self._best) > 4 * BEST:
            self._best = self._least_dominated()

    def _key(self, seen: Seen) -> Key:
        if seen.state is TrialState.COMPLETE and seen.values:
            return 0, _orderly(self._signs[0] * seen.values[0]), 0.0, seen.number
        if seen.last_report is None:
            return 1, 1.0, 0.0, seen.number
        step, value = seen.last_report
        return 1, -step, _orderly(self._signs[0] * value), seen.number

    def _least_dominated(self) -> list[tuple[Key, Restated]]:
        """Keep those that the fewest others beat in all directions; among equals the latest."""
        complete = [item for item in self._best if item[1].seen.state is TrialState.COMPLETE]
        losses = np.array([item[1].seen.values for item in complete], dtype=float) * self._signs
        no_worse = (losses[:, None, :] <= losses[None, :, :]).all(axis=2)
        better = (losses[:, None, :] < losses[None, :, :]).any(axis=2)
        dominated_by = (no_worse & better).sum(axis=0)
        order = sorted(range(len(complete)), key=lambda i: (dominated_by[i], -complete[i][1].number))
        return sorted((complete[i] for i in order[: 2 * BEST]), key=lambda item: item[0])

    def _kept(self) -> dict[int, Restated]:
        kept = {trial.number: trial for _, trial in self._best}
        kept.update((-negative, trial) for negative, trial in self._recent)
        kept.update((number, trial) for _, number, trial in self._spread)
        return kept

    def trials(self) -> list[Restated]:
        """The finished trials that are kept, by number."""
        kept = self._kept()
        return [kept[number] for number in sorted(kept)]

    def best(self, count: int) -> list[Restated]:
        """The best ones, by number."""
        return sorted((trial for _, trial in self._best[:count]), key=lambda trial: trial.number)

    def others(self, good: Sequence[Restated], with_running: bool) -> tuple[list[Restated], Floats]:
        """Those that are kept besides the good ones, by number, the running ones last; and what each stands for.

        A trial of the sample stands for all that are not kept, so that together they weigh as all of them would.
        """
        kept = self._kept()
        for trial in good:
            del kept[trial.number]
        numbers = sorted(kept)
        named = {trial.number for _, trial in self._best} | {-negative for negative, _ in self._recent}
        sampled = np.array([number not in named for number in numbers], dtype=bool)
        some, unkept = int(sampled.sum()), self.finished - len(named)
        ranks = np.array(numbers, dtype=np.int64) * self.finished // max(self._latest + 1, 1)
        weights = weights_by_age(ranks, self.finished)
        if some:
            weights[sampled] *= unkept / some
        running = self.running() if with_running else []
        return [*(kept[number] for number in numbers), *running], np.append(weights, np.ones(len(running)))

    def running(self) -> list[Restated]:
        return [self._running[number] for number in sorted(self._running)[-RUNNING:]]


def _hash(number: int) -> int:
    return int.from_bytes(hashlib.blake2b(number.to_bytes(8, "big"), digest_size=8).digest(), "big")


def _orderly(value: float) -> float:
    return math.inf if math.isnan(value) else value
