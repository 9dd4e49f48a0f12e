"""A Gaussian process with a Matérn 5/2 kernel, a length scale an axis, and noise, in NumPy and SciPy.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5. Its mean is a constant, by
generalized least squares. The logarithms of its length scales and variances have normal priors (below), and the most
probable ones are taken.

Arrays: N trials, M points asked about, D axes, F features (see cube.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]

# Of the logarithms, as (mean, standard deviation). The length scales' mean is the logarithm of this, times √D.
_LENGTH, _LENGTHS_SPREAD = 0.5, 1.0
_SIGNAL = (0.0, 0.7)
NOISE = (-4.0, 0.7)
NO_NOISE = (-12.0, 0.7)
_MOST_STEPS = 25
_JITTER = 1e-8


@dataclass(frozen=True)
class Hyperparameters:
    """lengths: (D,); signal, noise: variances."""

    lengths: Floats
    signal: float
    noise: float

    @classmethod
    def of(cls, logarithms: Floats) -> Hyperparameters:
        numbers = np.exp(logarithms)
        return cls(numbers[:-2], float(numbers[-2]), float(numbers[-1]))


def fitted(
    features: Floats,
    axis_of: NDArray[np.intp],
    values: Floats,
    noise: tuple[float, float],
    extent: Floats | float = 1.0,
) -> Hyperparameters:
    """The most probable ones for these values, searched from the priors' means: they follow from the trials alone.

    features: (N, F); axis_of: (F,); values: (N,), standardized; noise: the prior of its variance's logarithm;
    extent: (D,), how far the trials lie apart on each axis, in which the length scales are expected.
    """
    D = int(axis_of.max()) + 1
    means = np.append(math.log(_LENGTH * math.sqrt(D)) + np.log(extent) * np.ones(D), [_SIGNAL[0], noise[0]])
    spreads = np.array([_LENGTHS_SPREAD] * D + [_SIGNAL[1], noise[1]])
    if len(values) < 2:
        return Hyperparameters.of(means)
    squares = _squares(features, axis_of, D)

    def cost(logarithms: Floats) -> tuple[float, Floats]:
        value, slope = _misfit(Hyperparameters.of(logarithms), squares, values)
        off = (logarithms - means) / spreads
        return value + 0.5 * float(off @ off), slope + off / spreads

    reach = [(mean - 4 * spread, mean + 4 * spread) for mean, spread in zip(means, spreads, strict=True)]
    found = minimize(cost, means, jac=True, method="L-BFGS-B", bounds=reach, options={"maxiter": _MOST_STEPS})
    # Rounded: the last digits depend on the machine, and a draw shall not.
    return Hyperparameters.of(np.round(found.x, 2))


def _squares(features: Floats, axis_of: NDArray[np.intp], D: int) -> Floats:
    """(D, N, N): the squared distances on each axis."""
    squares = np.zeros((D, len(features), len(features)))
    for column, axis in zip(features.T, axis_of.tolist(), strict=True):
        squares[axis] += (column[:, None] - column[None, :]) ** 2
    return squares


def _misfit(at: Hyperparameters, squares: Floats, values: Floats) -> tuple[float, Floats]:
    """The negative log likelihood, and its slope by the logarithms of lengths, signal and noise."""
    N = len(values)
    scaled = squares * (at.lengths**-2)[:, None, None]
    distance = np.sqrt(scaled.sum(axis=0))
    signal, decay = _matern(distance, at.signal)
    lower = cholesky(signal + (at.noise + _JITTER) * np.eye(N), lower=True, check_finite=False)
    inverse = cho_solve((lower, True), np.eye(N), check_finite=False)
    weighed = inverse.sum(axis=1)
    residual = values - float(weighed @ values) / float(weighed.sum())
    alpha = inverse @ residual
    value = 0.5 * float(residual @ alpha) + float(np.log(np.diag(lower)).sum())
    pull = np.outer(alpha, alpha) - inverse
    by_lengths = -0.5 * np.tensordot(scaled, pull * decay, axes=2)
    by_signal = -0.5 * float((pull * signal).sum())
    by_noise = -0.5 * at.noise * float(np.trace(pull))
    return value, np.append(by_lengths, [by_signal, by_noise])


def _matern(distance: Floats, signal: float) -> tuple[Floats, Floats]:
    """The covariance, and what a squared distance is multiplied by in its slope by the logarithm of a length."""
    root = math.sqrt(5) * distance
    decay = signal * np.exp(-root)
    return decay * (1 + root + root * root / 3), decay * (5 / 3) * (1 + root)


class Posterior:
    """What the trials say about any other point. `believed` points are taken to come out as expected (their values
    change nothing but the certainty): trials that run.
    """

    def __init__(
        self,
        at: Hyperparameters,
        axis_of: NDArray[np.intp],
        features: Floats,
        values: Floats,
        believed: Floats | None = None,
    ) -> None:
        """features: (N, F); values: (N,); believed: (running, F)."""
        self._at, self.noise = at, at.noise
        self._scale = 1 / at.lengths[axis_of]
        self._points = features * self._scale
        self._lower = self._factor(self._points)
        weighed = self._solve(np.ones(len(values)))
        self._mean = float(weighed @ values) / float(weighed.sum())
        self._alpha = self._solve(values - self._mean)
        self._certain = self._points
        if believed is not None and len(believed):
            self._certain = np.concatenate([self._points, believed * self._scale])
            self._lower = self._factor(self._certain)

    def _factor(self, points: Floats) -> Floats:
        covariance = self._covariance(points, points)
        covariance[np.diag_indices_from(covariance)] += self.noise + _JITTER
        lower: Floats = cholesky(covariance, lower=True, check_finite=False)
        return lower

    def _solve(self, right: Floats) -> Floats:
        solved: Floats = cho_solve((self._lower, True), right, check_finite=False)
        return solved

    def _covariance(self, a: Floats, b: Floats) -> Floats:
        squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * (a @ b.T)
        return _matern(np.sqrt(np.maximum(squares, 0)), self._at.signal)[0]

    def means(self, features: Floats) -> Floats:
        """(M,)."""
        means: Floats = self._mean + self._covariance(features * self._scale, self._points) @ self._alpha
        return means

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """(M,) each: the mean, and the standard deviation of the function without noise."""
        covariance = self._covariance(features * self._scale, self._certain)
        means = self._mean + covariance[:, : len(self._points)] @ self._alpha
        explained = solve_triangular(self._lower, covariance.T, lower=True, check_finite=False)
        variance = self._at.signal - (explained * explained).sum(axis=0)
        return means, np.sqrt(np.maximum(variance, 1e-12))
