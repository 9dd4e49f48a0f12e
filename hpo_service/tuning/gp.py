"""Search by a Gaussian process: draw where the best seen is most likely to be bettered, as far as one can tell.

The acquisition is the logarithm of the expected improvement on the least expected value (Ament et al., 2023,
arXiv:2310.20708), lowered where the noise hides what a trial would tell (augmented EI: Huang et al., 2006). It is
taken at some hundred candidates, all over the cube, around the best trials, and around the best candidate so far.
Running trials count as if they had come out as expected (a kriging believer: Ginsbourger et al., 2010).
With near_best it fits another process to the trials around the best alone, at their own scale (after Eriksson et al.,
2019, arXiv:1910.01739): the first one, fitted to all trials, is too coarse there.
What each part was measured to give: docs/decisions/0050.

The first trials cover the space evenly. A draw follows from the study's seed, the number and the history: the kernel's
hyperparameters are refitted at certain sizes of the history, from the trials below that number.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import erfcx, ndtr, ndtri

from hpo_service.domain.search_space import Params, SearchSpace, Value
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, Axis
from hpo_service.tuning.bounded_history import COMPLETE, BoundedHistory, HistoryBounds
from hpo_service.tuning.cube import Cube
from hpo_service.tuning.drawing import DrawnParams, Sampler, positions
from hpo_service.tuning.gaussian_process import NO_NOISE, NOISE, Floats, Hyperparameters, Posterior, fitted
from hpo_service.tuning.later_gains import LaterGains
from hpo_service.tuning.tpe import tpe

_KEPT = HistoryBounds(best=100, recent=50, sample=50)
_LEAST_STARTUP, _MOST_STARTUP = 5, 10
# The refit at a size waits for running trials below it, but only until the number drawn is this many times as large.
_OVERDUE = 1.5
_SQUARES_WITHIN = 1e150  # the squares of larger numbers overflow
_ANYWHERE, _AROUND_BEST, _BEST = 384, 28, 6
_ROUNDS, _A_ROUND = (0.12, 0.048, 0.019), 80
_NEAR_BEST = 0.1
_NEAR = 1e-6
# Close to the best: how many trials are looked at, and the candidates around each of the best of them, as far apart.
_NEIGHBOURS, _AMONG, _AS_FAR_APART = 50, 64, 1 / math.sqrt(12)
_LITTLE_NOISE = 0.2


def _sizes() -> list[int]:
    sizes = [_LEAST_STARTUP]
    while sizes[-1] < 1_000_000:
        sizes.append(max(sizes[-1] + 1, round(sizes[-1] * 1.2)))
    return sizes


def _with_steps_between(sizes: Sequence[int], steps: int) -> list[int]:
    between = {low + (high - low) * k // steps for low, high in pairwise(sizes) for k in range(1, steps)}
    return sorted({*sizes, *between})


_REFITTED_AT = _sizes()
# Near the best refits are more frequent, since its neighbours change with it. Each size above is one of these, since
# the neighbours follow from the hyperparameters of all trials.
_NEIGHBOURS_REFITTED_AT = _with_steps_between(_REFITTED_AT, 3)
_NEVER = -1
_MOST_ROWS = 2_000


class GaussianProcess:
    def __init__(
        self,
        seed: int,
        direction: str,
        space: SearchSpace,
        *,
        n_startup_trials: int | None = None,
        deterministic_objective: bool = False,
        warn_independent_sampling: bool = False,
    ) -> None:
        self._seed = seed
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._startup = n_startup_trials
        self._noise = NO_NOISE if deterministic_objective else NOISE
        self._history = BoundedHistory([direction], space, _KEPT)
        self._gains = LaterGains()
        self._axes: Axes | None = None
        self._fitted_upto = self._neighbours_fitted_upto = _NEVER

    def absorb(self, trial: HistoryTrial) -> None:
        self._history.absorb(trial)
        self._gains.absorb(trial)
        if self._axes is not None and trial.number < max(self._fitted_upto, self._neighbours_fitted_upto):
            self._fitted_upto = self._neighbours_fitted_upto = _NEVER

    def known(self, axes: Axes) -> tuple[int, int]:
        """How many trials inside these ranges have finished, and how many run."""
        self._restrict_to(axes)
        return self._history.finished, len(self._history.running_numbers())

    def sees_finely(self, number: int, axes: Axes) -> bool:
        """Whether the noise is small against the signal; else differences near the best are mostly noise."""
        self._restrict_to(axes)
        if not len(self._cube) or self._least_loss() is None:
            return False
        at = self._hyperparameters(number, self._history.running_numbers())
        return at.noise < _LITTLE_NOISE * at.signal

    def _restrict_to(self, axes: Axes) -> None:
        if self._history.restrict_to(axes):
            self._axes, self._cube = axes, Cube(axes)
            self._rows: dict[int, Floats] = {}
            self._fitted_upto = self._neighbours_fitted_upto = _NEVER

    def draw(self, number: int, axes: Axes, fixed: Params, *, near_best: bool = False) -> DrawnParams:
        """near_best: draw near the best trial, by a process that is fitted to the trials around it alone."""
        self._restrict_to(axes)
        point = self._cube.params(self._point(number, fixed, near_best)) if len(self._cube) else {}
        position = positions(self._seed, number)

        def value_of(axis: Axis) -> Value:
            return point[axis.name] if axis.name in point else axis.at(position())

        return DrawnParams(axes.complete(fixed, value_of))

    # -- which point --------------------------------------------------------------------------------------

    def _point(self, number: int, fixed: Params, near_best: bool) -> Floats:
        """(D,): the places of this trial."""
        history, cube = self._history, self._cube
        if not history.finished and not history.running_numbers():
            return cube.middle(self._seed, number)
        if history.finished < self._startup_trials() or self._least_loss() is None:
            return cube.spread(self._seed, number)
        held = cube.places(fixed) if fixed else None
        if near_best:
            return self._most_promising_near_best(number, held)
        return self._most_promising(number, held)

    def _least_loss(self) -> float | None:
        """The least loss of the COMPLETE trials; None where there is none."""
        best = self._history.best(1)
        return best[0][1] if best and best[0][0] == COMPLETE else None

    def _startup_trials(self) -> int:
        if self._startup is not None:
            return self._startup
        return min(max(int(self._cube.is_numeric.sum()) + 1, _LEAST_STARTUP), _MOST_STARTUP)

    def _most_promising(self, number: int, held: Floats | None) -> Floats:
        cube, seed = self._cube, self._seed
        numbers, running = self._history.finished_numbers(), self._history.running_numbers()
        places = self._places(numbers)
        posterior = self._posterior(self._hyperparameters(number, running), numbers, places, running)
        best, least = self._best_known(places, posterior)
        candidates = np.concatenate(
            [
                cube.anywhere(_ANYWHERE, seed, number),
                cube.around(best, _AROUND_BEST, _NEAR_BEST, seed, number, "best"),
            ]
        )
        return self._best_in_rounds(number, candidates, 1.0, posterior, least, held)

    def _most_promising_near_best(self, number: int, held: Floats | None) -> Floats:
        running = self._history.running_numbers()
        whole = self._hyperparameters(number, running)
        at = self._hyperparameters_near_best(number, running, whole)
        numbers = self._neighbours(self._history.finished_numbers(), whole)
        places = self._places(numbers)
        posterior = self._posterior(at, numbers, places, running)
        best, least = self._best_known(places, posterior)
        extent = self._cube.extent(places)
        candidates = self._cube.around(best, _AMONG, _AS_FAR_APART * extent, self._seed, number, "neighbours")
        return self._best_in_rounds(number, candidates, extent, posterior, least, held)

    def _best_known(self, places: Floats, posterior: Posterior) -> tuple[Floats, float]:
        """The places with the least expected values, and the least of these."""
        means = posterior.means(self._cube.features(places))
        return places[np.argsort(means, kind="stable")[:_BEST]], float(means.min())

    def _best_in_rounds(
        self,
        number: int,
        candidates: Floats,
        extent: Floats | float,
        posterior: Posterior,
        least: float,
        held: Floats | None,
    ) -> Floats:
        """The best of these, then of some around it, each round closer; extent: see Cube."""
        found, score = self._best_of(candidates, posterior, least, held)
        for reach in _ROUNDS:
            near = self._cube.around(found[None], _A_ROUND, reach * extent, self._seed, number, f"near {reach}")
            nearer, its = self._best_of(near, posterior, least, held)
            if its > score + _NEAR:
                found, score = nearer, its
        return found

    def _best_of(
        self, candidates: Floats, posterior: Posterior, least: float, held: Floats | None
    ) -> tuple[Floats, float]:
        if held is not None:
            there = ~np.isnan(held)
            candidates[:, there] = held[there]
        scores = _acquisition(*posterior.predict(self._cube.features(candidates)), least, posterior.noise)
        best = int(np.argmax(scores >= scores.max() - _NEAR))
        return candidates[best], float(scores[best])

    # -- what is known ------------------------------------------------------------------------------------

    def _posterior(self, at: Hyperparameters, numbers: list[int], places: Floats, running: list[int]) -> Posterior:
        """places: of these numbers."""
        cube = self._cube
        believed = cube.features(self._places(running)) if running else None
        return Posterior(at, cube.axis_of, cube.features(places), targets(self._losses(numbers)), believed)

    def _hyperparameters(self, number: int, running: list[int]) -> Hyperparameters:
        upto = _refit_size(number, running, _REFITTED_AT)
        if upto != self._fitted_upto:
            self._at = self._fitted(self._history.kept_as_of(upto))
            self._fitted_upto = upto
        return self._at

    def _hyperparameters_near_best(self, number: int, running: list[int], whole: Hyperparameters) -> Hyperparameters:
        upto = _refit_size(number, running, _NEIGHBOURS_REFITTED_AT)
        if upto != self._neighbours_fitted_upto:
            numbers = self._neighbours(self._history.kept_as_of(upto), whole)
            self._at_near_best = self._fitted(numbers, self._cube.extent(self._places(numbers)))
            self._neighbours_fitted_upto = upto
        return self._at_near_best

    def _fitted(self, numbers: list[int], extent: Floats | float = 1.0) -> Hyperparameters:
        features = self._cube.features(self._places(numbers))
        return fitted(features, self._cube.axis_of, targets(self._losses(numbers)), self._noise, extent)

    def _neighbours(self, numbers: list[int], whole: Hyperparameters) -> list[int]:
        """Those of them that are nearest to the one expected to be best, by the length scales of the whole."""
        if not numbers:
            return []
        axis_of = self._cube.axis_of
        features = self._cube.features(self._places(numbers))
        means = Posterior(whole, axis_of, features, targets(self._losses(numbers))).means(features)
        away = (features - features[np.argmin(means)]) / whole.lengths[axis_of]
        nearest = np.argsort((away * away).sum(axis=1), kind="stable")[:_NEIGHBOURS]
        return sorted(numbers[place] for place in nearest.tolist())

    def _places(self, numbers: list[int]) -> Floats:
        """(N, D)."""
        if len(self._rows) > _MOST_ROWS:
            self._rows.clear()
        for number in numbers:
            if number not in self._rows:
                self._rows[number] = self._cube.places(self._history.past.params(number))
        return np.array([self._rows[number] for number in numbers]).reshape(len(numbers), len(self._cube))

    def _losses(self, numbers: list[int]) -> Floats:
        """(N,): smaller is better; infinite for what failed."""
        past, least = self._history.past, self._least_loss()
        losses = []
        for number in numbers:
            state, values, last = past.state(number), past.values(number), past.last_report(number)
            if state is TrialState.COMPLETE and values is not None:
                losses.append(self._sign * values[0])
            elif state is TrialState.PRUNED and last is not None:
                expected = self._sign * (last[1] + self._gains.after(last[0]))
                losses.append(expected if least is None else max(expected, least))
            else:
                losses.append(math.inf)
        known = np.array(losses)
        known[np.isnan(known)] = math.inf
        return known


def _refit_size(number: int, running: Sequence[int], sizes: Sequence[int]) -> int:
    """The largest of these sizes below which no trial runs any more (but see _OVERDUE); 0 where there is none."""
    snapped = min(running[0] if running else number, number)
    place = bisect_right(sizes, max(snapped, int(number / _OVERDUE)))
    return sizes[place - 1] if place else 0


def targets(losses: Floats) -> Floats:
    """(N,): what the process is fitted to, standardized.

    The better half as it is; of the others, and of what is infinite, no more than their rank, so that neither a
    divergence nor a long tail bends the fit where it matters.
    """
    finite = np.sort(losses[np.isfinite(losses)])
    if not len(finite):
        return np.zeros(len(losses))
    if (largest := float(np.abs(finite).max())) > _SQUARES_WITHIN:
        return targets(losses / largest)
    better = (len(finite) + 1) // 2
    median = finite[better - 1]
    spread = math.sqrt(float(np.mean((finite[:better] - median) ** 2))) or 1.0
    ranks = _mean_ranks(losses)
    beyond = np.clip((ranks - better) / (len(losses) - better + 1), 0, 1)
    restated = np.where(losses <= median, losses, median + spread * ndtri(0.5 + 0.5 * beyond))
    restated = np.maximum(restated, finite[0])
    deviation = float(restated.std())
    standardized: Floats = (restated - restated.mean()) / (deviation or 1.0)
    return standardized


def _mean_ranks(values: Floats) -> Floats:
    """(N,): from 1; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _acquisition(means: Floats, deviations: Floats, least: float, noise: float) -> Floats:
    """(M,): the logarithm of the augmented expected improvement."""
    augmented = np.log1p(-math.sqrt(noise) / np.sqrt(noise + deviations**2))
    improvement: Floats = _log_improvement((least - means) / deviations) + np.log(deviations) + augmented
    return improvement


def _log_improvement(z: Floats) -> Floats:
    """log(φ(z) + z Φ(z)), also where both vanish."""
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    near = np.maximum(density + z * ndtr(z), 1e-300)
    far = np.minimum(z, -1.0)
    # φ(z) (1 - |z| Φ(z) / φ(z)), with Φ / φ by the scaled complementary error function.
    ratio = -far * math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2))
    rest = np.maximum(1 - ratio, 1 / (far * far + 3))
    tail = -0.5 * far * far - 0.5 * math.log(2 * math.pi) + np.log(rest)
    logarithm: Floats = np.where(z > -1, np.log(near), tail)
    return logarithm


def gp(seed: int, directions: Sequence[str], space: SearchSpace, options: Mapping[str, Any]) -> Sampler:
    """With several directions, in a study from before they were refused, TPE draws."""
    if len(directions) > 1:
        return tpe(seed, directions, space, {})
    return GaussianProcess(seed, directions[0], space, **options)
