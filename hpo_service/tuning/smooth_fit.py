"""A smooth fit to the values of trials: what it explains, with and without each parameter, and the noise it leaves.

Kernel ridge regression with leave-one-out errors in closed form: each trial is predicted from all others. It knows no
derivative and no prior; for advice, not for drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hpo_service.domain.advice_input import AdviceTrial, SmoothFit
from hpo_service.domain.advice_on_ranges import place_of
from hpo_service.domain.choices import identity
from hpo_service.domain.search_space import AnyParameter, CategoricalParameter, Value

Floats = npt.NDArray[np.float64]
Space = Mapping[str, AnyParameter]

MOST_TRIALS = 200  # an eigenvalue decomposition of these takes some milliseconds, and each parameter needs three
FEWEST_TRIALS = 12
# The kernel's lengths, as shares of a range, for one parameter; with n parameters they are √n times as long.
LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RIDGES = tuple(10.0**power for power in (-8, -7, -6, -5, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1))
A_CHOICE = math.sqrt(0.5)  # how far apart two choices are, as a share of a range, times the root of two
SPREAD = 0.2  # of a parameter's places (standard deviation), or it was searched too narrowly to say whether it matters
CLOSE = 0.3  # of the nearest neighbours
NOISY = 0.8  # of the error with the smallest ridge: where smoothing helps so much, there is noise


def smooth_fits(space: Space, trials: Sequence[AdviceTrial], *, maximize: bool) -> list[SmoothFit]:
    """One fit for the parameters that every trial has, and one for each group of trials that share conditional ones."""
    complete = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    fits = []
    judged: set[str] = set()
    for names, having in _groups(space, complete):
        fit = _fit(space, names, having[:: math.ceil(len(having) / MOST_TRIALS)], maximize=maximize)
        if fit is not None:
            new = {name: share for name, share in fit.without.items() if name not in judged}
            judged |= set(names)
            fits.append(SmoothFit(fit.trials, fit.explained, new, fit.noise))
    return fits


def _groups(space: Space, complete: Sequence[AdviceTrial]) -> Iterator[tuple[list[str], list[AdviceTrial]]]:
    """The largest group first: parameters that all of these trials have, and the trials."""
    by_trials: dict[tuple[int, ...], list[AdviceTrial]] = {}
    for name in space:
        having = [trial for trial in complete if name in trial.params]
        by_trials.setdefault(tuple(trial.number for trial in having), having)
    for having in sorted(by_trials.values(), key=len, reverse=True):
        if len(having) >= FEWEST_TRIALS:
            yield [name for name in space if all(name in trial.params for trial in having)], having


def _fit(space: Space, names: Sequence[str], trials: Sequence[AdviceTrial], *, maximize: bool) -> SmoothFit | None:
    losses, scale = _losses(np.array([trial.value for trial in trials], dtype=np.float64), maximize=maximize)
    columns = {name: _columns(space[name], [trial.params[name] for trial in trials]) for name in names}
    varied = {name: each for name, each in columns.items() if _spread(each) >= SPREAD}
    logarithms = np.log1p(losses)  # how bad the bad ones are is not of interest
    spread = logarithms.std()
    if not spread > 0 or not varied:
        return None
    values = (logarithms - logarithms.mean()) / spread
    squares = {name: _squares(each) for name, each in columns.items()}
    whole = sum(squares.values(), np.zeros((len(trials), len(trials))))
    residuals, interpolated = _residuals(whole, values, len(names))
    rest = len(names) - 1
    without = {name: 1 - _mean_square(_residuals(whole - squares[name], values, rest)[0]) for name in varied if rest}
    knows_all = all(set(trial.params) == set(names) for trial in trials)  # else what it leaves out looks like noise
    is_noise = knows_all and _mean_square(residuals) < NOISY**2 * _mean_square(interpolated)
    good = losses <= np.median(losses)
    left = spread * math.sqrt(_mean_square((residuals * (1 + losses))[good]))
    noise = scale * min(left, _between_neighbours(whole[np.ix_(good, good)], losses[good]))
    return SmoothFit(len(trials), 1 - _mean_square(residuals), without, float(noise) if is_noise else None)


def _between_neighbours(squares: Floats, losses: Floats) -> float:
    """An upper bound of the noise: what the trials that lie closest together differ by."""
    apart = squares + np.diag(np.full(len(losses), np.inf))
    nearest = apart.argmin(axis=1)
    close = apart.min(axis=1) <= np.quantile(apart.min(axis=1), CLOSE)
    return math.sqrt(_mean_square((losses - losses[nearest])[close]) / 2)


def _losses(told: Floats, *, maximize: bool) -> tuple[Floats, float]:
    """How far each value lies from the best, in units of how far the median does; and this unit."""
    largest = float(np.abs(told).max()) or 1.0  # divided first: differences of the largest numbers are infinite
    losses: Floats = (told.max() / largest - told / largest) if maximize else (told / largest - told.min() / largest)
    unit = float(np.median(losses)) or float(losses.max()) or 1.0
    return losses / unit, unit * largest


def _mean_square(residuals: Floats) -> float:
    return float(np.mean(residuals**2))


def _columns(given: AnyParameter, values: Sequence[Value]) -> Floats:
    """(T, A) for T trials and the axes of the parameter."""
    if not isinstance(given, CategoricalParameter):
        return np.array([[place_of(given, value) if given.high > given.low else 0.0] for value in values])
    keys = [identity(value) for value in values]
    return A_CHOICE * np.array([[key == choice for choice in dict.fromkeys(keys)] for key in keys], dtype=np.float64)


def _spread(columns: Floats) -> float:
    return float(np.sqrt(columns.var(axis=0).sum()))


def _squares(columns: Floats) -> Floats:
    """(T, T): squared distances."""
    lengths = (columns**2).sum(axis=1)
    squares: Floats = np.maximum(lengths[:, None] + lengths[None, :] - 2 * columns @ columns.T, 0)
    return squares


def _residuals(squares: Floats, values: Floats, parameters: int) -> tuple[Floats, Floats]:
    """The smallest leave-one-out residuals, and those with the same length and the least ridge."""
    best = least = values
    for length in LENGTHS:
        kernel = np.exp(-squares / (length**2 * parameters))
        eigenvalues, vectors = np.linalg.eigh(kernel + RIDGES[0] / 1000 * np.eye(len(values)))
        turned = vectors.T @ values
        for ridge in RIDGES:
            weights = ridge / (np.maximum(eigenvalues, 0) + ridge)
            residuals = (vectors @ (weights * turned)) / ((vectors**2) @ weights)
            if ridge == RIDGES[0]:
                interpolated = residuals
            if _mean_square(residuals) < _mean_square(best):
                best, least = residuals, interpolated
    return best, least
