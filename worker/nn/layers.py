"""What follows the first layer: affine, batch normalization, activations and dropout.

`forward` while training, `evaluate` afterwards, `backward` from dL/dy to dL/dx. A layer is made for at most `rows`
rows at a time and keeps its buffers; an activation writes over its input, and `backward` may write over dy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from worker.nn.arrays import Array, Dtype
from worker.nn.parameters import Parameter


class Layer(Protocol):
    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        """Return y (B, O) for x (B, I) while training; remember what `backward` needs."""

    def evaluate(self, x: Array) -> Array:
        """Return y (B, O) for x (B, I) after training."""

    def backward(self, dy: Array) -> Array:
        """Return dL/dx (B, I) for dL/dy (B, O); write the gradients of the layer's own parameters."""


class Affine:
    """y = x @ W + b, with x (B, I), W (I, O) and b (O,); without b before a batch normalization."""

    def __init__(self, W: Parameter, b: Parameter | None, rows: int) -> None:
        self.W, self.b = W, b
        inputs, outputs = W.value.shape
        self._y: Array = np.empty((rows, outputs), W.value.dtype)
        self._dx: Array = np.empty((rows, inputs), W.value.dtype)
        self._ones: Array = np.ones(rows, W.value.dtype)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        self._x = x
        return self.evaluate(x)

    def evaluate(self, x: Array) -> Array:
        y = np.matmul(x, self.W.value, out=self._y[: len(x)])
        if self.b is not None:
            y += self.b.value
        return y

    def backward(self, dy: Array) -> Array:
        """dW = xᵀ @ dy, db = Σ_B dy, dx = dy @ Wᵀ."""
        np.matmul(self._x.T, dy, out=self.W.gradient)
        if self.b is not None:
            # a sum as a product with ones, two to three times as fast
            np.matmul(self._ones[: len(dy)], dy, out=self.b.gradient)
        return np.matmul(dy, self.W.value.T, out=self._dx[: len(dy)])


class BatchNormalization:
    """y = γ x̂ + β with x̂ = (x − mean) / √(variance + ε), over the batch (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    γ and β are (O,). The variance is the biased one. Evaluation takes running averages of mean and variance, which
    begin with the first batch: begun at 0 they would distort the first evaluations.
    """

    EPSILON = 1e-6
    KEPT = 0.9  # share of the old running average

    def __init__(self, gamma: Parameter, beta: Parameter, rows: int) -> None:
        self.gamma, self.beta = gamma, beta
        gamma.value[:] = 1
        size, dtype = len(gamma.value), gamma.value.dtype
        self._begun = False
        self._running_mean: Array = np.zeros(size, dtype)
        self._running_variance: Array = np.ones(size, dtype)
        self._normalized: Array = np.empty((rows, size), dtype)
        self._y: Array = np.empty((rows, size), dtype)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        normalized, y = self._normalized[: len(x)], self._y[: len(x)]
        mean = np.add.reduce(x, axis=0) / len(x)
        np.subtract(x, mean, out=normalized)
        np.multiply(normalized, normalized, out=y)
        variance = np.add.reduce(y, axis=0) / len(x)
        self._follow(mean, variance)
        self._deviation = np.sqrt(variance + self.EPSILON)
        normalized /= self._deviation
        np.multiply(normalized, self.gamma.value, out=y)
        y += self.beta.value
        return y

    def evaluate(self, x: Array) -> Array:
        scale: Array = self.gamma.value / np.sqrt(self._running_variance + self.EPSILON)
        y = np.multiply(x, scale, out=self._y[: len(x)])
        y += self.beta.value - self._running_mean * scale
        return y

    def backward(self, dy: Array) -> Array:
        """dβ = Σ_B dy, dγ = Σ_B dy x̂, dx = γ/√(variance + ε) · (dy − dβ/B − x̂ dγ/B).

        The last two terms are what moves the mean and the variance of the batch.
        """
        rows = len(dy)
        normalized, product = self._normalized[:rows], self._y[:rows]
        np.add.reduce(dy, axis=0, out=self.beta.gradient)
        np.multiply(dy, normalized, out=product)
        np.add.reduce(product, axis=0, out=self.gamma.gradient)
        np.multiply(normalized, self.gamma.gradient / rows, out=product)
        dy -= product
        dy -= self.beta.gradient / rows
        dy *= self.gamma.value / self._deviation
        return dy

    def _follow(self, mean: Array, variance: Array) -> None:
        share = 1 - self.KEPT if self._begun else 1
        self._running_mean += share * (mean - self._running_mean)
        self._running_variance += share * (variance - self._running_variance)
        self._begun = True


class Relu:
    """y = max(x, 0); its gradient is 0 at exactly 0."""

    def __init__(self, size: int, rows: int, dtype: Dtype) -> None:
        # an array of zeros: against a scalar np.maximum is several times slower
        self._zeros: Array = np.zeros((rows, size), dtype)
        self._positive = np.empty((rows, size), np.bool_)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        self._y = self.evaluate(x)
        return self._y

    def evaluate(self, x: Array) -> Array:
        return np.maximum(x, self._zeros[: len(x)], out=x)

    def backward(self, dy: Array) -> Array:
        # a multiplication: assigning zeros through a boolean mask is ten times slower
        dy *= np.greater(self._y, self._zeros[: len(dy)], out=self._positive[: len(dy)])
        return dy


class Sigmoid:
    """y = 1 / (1 + exp(−x)), written as ½ (1 + tanh ½x), which cannot overflow; dy/dx = y (1 − y)."""

    def __init__(self, size: int, rows: int, dtype: Dtype) -> None:
        self._slope: Array = np.empty((rows, size), dtype)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        self._y = self.evaluate(x)
        return self._y

    def evaluate(self, x: Array) -> Array:
        x *= 0.5
        np.tanh(x, out=x)
        x += 1
        x *= 0.5
        return x

    def backward(self, dy: Array) -> Array:
        slope = np.subtract(1, self._y, out=self._slope[: len(dy)])
        slope *= self._y
        dy *= slope
        return dy


class Tanh:
    """y = tanh(x); dy/dx = 1 − y²."""

    def __init__(self, size: int, rows: int, dtype: Dtype) -> None:
        self._slope: Array = np.empty((rows, size), dtype)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        self._y = self.evaluate(x)
        return self._y

    def evaluate(self, x: Array) -> Array:
        return np.tanh(x, out=x)

    def backward(self, dy: Array) -> Array:
        slope = np.multiply(self._y, self._y, out=self._slope[: len(dy)])
        np.subtract(1, slope, out=slope)
        dy *= slope
        return dy


class Dropout:
    """Drops each neuron with probability `ratio` while training; evaluation scales by the share kept.

    The plain form of Srivastava et al., 2014 (JMLR 15): y = x · [u > ratio], u uniform in [0, 1), unscaled.
    """

    def __init__(self, ratio: float, size: int, rows: int, dtype: Dtype) -> None:
        self.ratio = ratio
        self._mask: Array = np.empty((rows, size), dtype)
        self._y: Array = np.empty((rows, size), dtype)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        mask = self._mask[: len(x)]
        rng.random(out=mask, dtype=mask.dtype)
        np.greater(mask, self.ratio, out=mask)
        return np.multiply(x, mask, out=self._y[: len(x)])

    def evaluate(self, x: Array) -> Array:
        return np.multiply(x, 1 - self.ratio, out=self._y[: len(x)])

    def backward(self, dy: Array) -> Array:
        dy *= self._mask[: len(dy)]
        return dy


ACTIVATIONS: Mapping[str, Callable[[int, int, Dtype], Layer]] = {"relu": Relu, "sigmoid": Sigmoid, "tanh": Tanh}
