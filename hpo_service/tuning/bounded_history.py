"""What TPE learns from: the best trials and a fixed number of the others, however many there are.

Finished trials do not change, so these parts are updated trial by trial, and a draw costs the same at 100 and at
100,000 trials. A finished trial is kept as one of

best     all that can count as good, of which TPE never takes more than 25, and the next after them: around the
         optimum the others' density has to be exact (of several directions: the least dominated)
recent   the last ones, where the search is now
sample   of the rest those with the lowest hash of their number, which are the same on every server; the weight of each
         is the size of the rest over that of the sample

so that nothing is left out while there are no more trials than the larger of `best` and `recent` plus `sample`.

A round with other ranges begins anew from all trials that lie inside them. One that lies outside is left out rather
than clipped: what it measured says nothing about the edge it would be moved to, and a crowd of clipped trials there
would look like evidence.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpo_service.domain.search_space import SearchSpace
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.past_trials import NO_STEP, Bools, Floats, HistoryChange, Integers, PastTrials

MOST_GOOD = 25
RUNNING = 64


@dataclass(frozen=True)
class HistoryBounds:
    best: int
    recent: int
    sample: int


FOR_MIXTURES = HistoryBounds(best=64, recent=192, sample=96)
# Optuna's samplers take longer over each trial, and a Gaussian process takes the cube of their number.
FOR_OPTUNA = HistoryBounds(best=64, recent=32, sample=64)

# By which finished trials are ordered, best first: those that are COMPLETE by value, then the PRUNED ones by their
# last step and its value, then those that have FAILED in training. The number makes it strict.
Key = tuple[int, float, float, int]
COMPLETE, PRUNED, FAILED = range(3)


class BoundedHistory:
    """finished: how many trials it has learned from, kept or not; touched: whose place has changed since last read."""

    def __init__(self, directions: Sequence[str], space: SearchSpace, bounds: HistoryBounds) -> None:
        self._bounds = bounds
        self._signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
        self.past = PastTrials(len(directions), space)
        self._axes: Axes | None = None
        self.touched: set[int] = set()
        self._forget()

    def _forget(self) -> None:
        self.finished = 0
        self._best: list[Key] = []
        self._recent: list[int] = []
        self._rest: list[tuple[int, int]] = []  # (hash, number) of the sample
        self._count_of_rest = 0
        self._running: list[int] = []
        self._named: dict[int, int] = {}  # by number: in how many of best and recent it is
        self._sampled: set[int] = set()
        self.touched.clear()

    def absorb(self, trial: HistoryTrial) -> None:
        change = self.past.put(trial)
        if change is HistoryChange.REVISED:
            self._axes = None  # what was final has changed: begin anew at the next draw
        elif change is HistoryChange.NEWS and self._axes is not None:
            self._place(trial, self._axes)

    def restrict_to(self, axes: Axes) -> bool:
        """Rebuild the history from the trials inside these axes' ranges; return False if it is so already."""
        if axes is self._axes:
            return False
        self._axes = axes
        self._forget()
        self._place_all(axes)
        return True

    # -- one by one ---------------------------------------------------------------------------------------

    def _place(self, trial: HistoryTrial, axes: Axes) -> None:
        number = trial.number
        self._drop_running(number)
        if not self._is_usable(trial) or axes.numbers_of(trial.params) is None:
            return
        self.touched.add(number)
        if not trial.state.is_finished:
            insort(self._running, number)
            self._touch_the_edge_of_running()
            return
        self.finished += 1
        self._named[number] = 2
        insort(self._best, self._key(trial))
        insort(self._recent, number)
        if len(self._recent) > self._bounds.recent:
            self._move_to_rest(self._recent.pop(0))
        if len(self._signs) == 1:
            if len(self._best) > self._bounds.best:
                self._move_to_rest(self._best.pop()[3])
        elif len(self._best) > 4 * self._bounds.best:
            self._keep_the_least_dominated()

    def _drop_running(self, number: int) -> None:
        place = bisect_left(self._running, number)
        if place < len(self._running) and self._running[place] == number:
            del self._running[place]
            self.touched.add(number)
            self._touch_the_edge_of_running()

    def _touch_the_edge_of_running(self) -> None:
        if len(self._running) >= RUNNING:
            self.touched.update(self._running[-RUNNING - 1 :][:2])

    def _is_usable(self, trial: HistoryTrial) -> bool:
        if trial.state is TrialState.PRUNED:
            return len(self._signs) == 1  # how far it came says nothing about several directions
        if trial.state is TrialState.FAIL:
            return trial.failed_in_training
        return trial.state is not TrialState.COMPLETE or bool(trial.values)

    def _key(self, trial: HistoryTrial) -> Key:
        if trial.state is TrialState.COMPLETE and trial.values:
            return COMPLETE, _nan_to_inf(self._signs[0] * trial.values[0]), 0.0, trial.number
        if trial.state is TrialState.FAIL:
            return FAILED, 0.0, 0.0, trial.number
        if not trial.reports:
            return PRUNED, 1.0, 0.0, trial.number
        step, value = trial.reports[-1]
        return PRUNED, -step, _nan_to_inf(self._signs[0] * value), trial.number

    def _move_to_rest(self, number: int) -> None:
        self._named[number] -= 1
        if self._named[number]:
            return
        del self._named[number]
        self.touched.add(number)
        self._count_of_rest += 1
        insort(self._rest, (_hash(number), number))
        self._sampled.add(number)
        if len(self._rest) > self._bounds.sample:
            dropped = self._rest.pop()[1]
            self._sampled.discard(dropped)
            self.touched.add(dropped)

    def _keep_the_least_dominated(self) -> None:
        """Keep those that are dominated by the fewest others; among equals the latest."""
        complete = [key for key in self._best if key[0] == COMPLETE]
        losses = np.array([self.past.values(key[3]) for key in complete]) * self._signs
        no_worse = (losses[:, None, :] <= losses[None, :, :]).all(axis=2)
        better = (losses[:, None, :] < losses[None, :, :]).any(axis=2)
        dominated_by = (no_worse & better).sum(axis=0)
        order = sorted(range(len(complete)), key=lambda i: (dominated_by[i], -complete[i][3]))
        stay = {complete[i] for i in order[: 2 * self._bounds.best]}
        for key in [key for key in self._best if key not in stay]:
            self._move_to_rest(key[3])
        self._best = sorted(stay)

    # -- all at once --------------------------------------------------------------------------------------

    def _place_all(self, axes: Axes) -> None:
        past = self.past
        inside = past.are_inside(axes)
        running = np.flatnonzero(inside & past.are(TrialState.WAITING, TrialState.RUNNING))
        self._running = running.tolist()
        numbers = np.flatnonzero(inside & self._usable())
        if len(self._signs) > 1:
            for number in numbers.tolist():
                self._place(past[number], axes)
            return
        self.finished = len(numbers)
        self._best, self._recent, hashes, rest, self._count_of_rest = self._chosen(numbers)
        for number in (*(key[3] for key in self._best), *self._recent):
            self._named[number] = self._named.get(number, 0) + 1
        self._rest = list(zip(hashes, rest, strict=True))
        self._sampled = set(rest)
        self.touched.update(self._named, self._sampled, self._running)

    def _chosen(self, numbers: Integers) -> tuple[list[Key], list[int], list[int], list[int], int]:
        """Of these finished ones: the best, the recent, the sample's hashes and numbers, and the size of the rest."""
        keys = self._keys(numbers)
        order = np.lexsort((numbers, *reversed(keys)))[: self._bounds.best]
        best = [(int(keys[0][k]), float(keys[1][k]), float(keys[2][k]), int(numbers[k])) for k in order.tolist()]
        recent = numbers[-self._bounds.recent :].tolist()
        rest = np.setdiff1d(numbers, [*(key[3] for key in best), *recent], assume_unique=False)
        hashes = _hash(rest.astype(np.uint64))
        lowest = np.lexsort((rest, hashes))[: self._bounds.sample]
        return best, recent, hashes[lowest].tolist(), rest[lowest].tolist(), len(rest)

    def _usable(self) -> Bools:
        """(T,): `_is_usable` of each that has finished."""
        past = self.past
        usable = past.have_failed_in_training() | (past.are(TrialState.COMPLETE) & ~np.isnan(past.told()))
        return usable | past.are(TrialState.PRUNED) if len(self._signs) == 1 else usable

    def _keys(self, numbers: Integers) -> tuple[Floats, Floats, Floats]:
        """`_key` of each."""
        complete = self.past.are(TrialState.COMPLETE)[numbers]
        failed = self.past.have_failed_in_training()[numbers]
        sign = self._signs[0]
        steps, values = self.past.last_reports()
        steps, values = steps[numbers], values[numbers]
        no_step = steps == NO_STEP
        first = np.where(complete, _nans_to_inf(sign * self.past.told()[numbers]), np.where(no_step, 1.0, -steps))
        first = np.where(failed, 0.0, first)
        second = np.where(complete | no_step | failed, 0.0, _nans_to_inf(sign * values))
        return np.where(complete, COMPLETE, np.where(failed, FAILED, PRUNED)), first, second

    # -- what is kept -------------------------------------------------------------------------------------

    def best(self, count: int) -> list[Key]:
        """The best ones, the best first; a key ends with the trial's number."""
        return self._best[:count]

    def keeps(self, number: int, with_running: bool) -> bool:
        """Whether it is among the finished trials that are kept, or the last RUNNING that run."""
        if number in self._named or number in self._sampled:
            return True
        if not with_running:
            return False
        place = bisect_left(self._running, number)
        return len(self._running) - RUNNING <= place < len(self._running) and self._running[place] == number

    def is_sampled(self, number: int) -> bool:
        """Whether it is one of the sample, whose weight is `sample_weight`."""
        return number in self._sampled

    @property
    def sample_weight(self) -> float:
        """The weight of one sampled trial: the size of the rest over that of the sample."""
        return self._count_of_rest / max(len(self._rest), 1)

    def finished_numbers(self) -> list[int]:
        """The finished trials that are kept."""
        return sorted(self._named.keys() | self._sampled)

    def running_numbers(self) -> list[int]:
        return self._running[-RUNNING:]

    def kept_as_of(self, number: int) -> list[int]:
        """Those that would be kept if only the trials below this number had finished; of one direction."""
        assert self._axes is not None
        usable = self.past.are_inside(self._axes) & self._usable()
        best, recent, _, sample, _ = self._chosen(np.flatnonzero(usable[:number]))
        return sorted({*(key[3] for key in best), *recent, *sample})


_WORD = 2**64 - 1
Word = TypeVar("Word", int, NDArray[Any])  # one, or an array of uint64


def _hash(number: Word) -> Word:
    """SplitMix64 (Steele et al., 2014): neighbouring numbers end up anywhere."""
    word = (number + 1) * 0x9E3779B97F4A7C15 & _WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31


def _nan_to_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _nans_to_inf(values: Floats) -> Floats:
    return np.where(np.isnan(values), np.inf, values)
