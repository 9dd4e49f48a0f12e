"""What follows the first layer: affine, batch normalization, activations and dropout.

`forward` while training, `evaluate` afterwards, `backward` from dL/dy to dL/dx, for K networks at a time. A layer is
made for at most so many rows and keeps its buffers; an activation writes over its input, and `backward` may write
over dy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from hpo_worker.nn.arrays import Array, Dtype, Indices
from hpo_worker.nn.parameters import Parameter

Shape = tuple[int, int, int]  # (K, most rows, O)
Streams = Sequence[np.random.Generator]  # one for each of K networks


class Layer(Protocol):
    def forward(self, x: Array, masks: Streams) -> Array:
        """Return y (K, B, O) for x (K, B, I) while training; remember what `backward` needs."""

    def evaluate(self, x: Array) -> Array:
        """Return y (K, B, O) for x (K, B, I) after training."""

    def backward(self, dy: Array) -> Array:
        """Return dL/dx (K, B, I) for dL/dy (K, B, O); write the gradients of the layer's own parameters."""


class Affine:
    """y = x @ W + b, with x (K, B, I), W (K, I, O) and b (K, 1, O); without b before a batch normalization.

    scratch: buffer for what only the next layer reads: adjacent layers alternate between two, which stay in the cache.
    """

    def __init__(self, W: Parameter, b: Parameter | None, rows: int, scratch: Array) -> None:
        self.W, self.b = W, b
        networks, inputs, outputs = W.value.shape
        self._y: Array = np.empty((networks, rows, outputs), W.value.dtype)
        self._dx: Array = scratch[: networks * rows * inputs].reshape(networks, rows, inputs)
        self._evaluated: Array = scratch[: networks * rows * outputs].reshape(networks, rows, outputs)
        self._ones: Array = np.ones((1, rows), W.value.dtype)

    def forward(self, x: Array, masks: Streams) -> Array:
        self._x = x
        return self._affine(x, self._y)

    def evaluate(self, x: Array) -> Array:
        return self._affine(x, self._evaluated)

    def _affine(self, x: Array, out: Array) -> Array:
        y = np.matmul(x, self.W.value, out=out[:, : x.shape[1]])
        if self.b is not None:
            y += self.b.value
        return y

    def backward(self, dy: Array) -> Array:
        """dW = xᵀ @ dy, db = Σ_B dy, dx = dy @ Wᵀ."""
        rows = dy.shape[1]
        np.matmul(self._x.swapaxes(1, 2), dy, out=self.W.gradient)
        if self.b is not None:
            # a sum as a product with ones, two to three times as fast
            np.matmul(self._ones[:, :rows], dy, out=self.b.gradient)
        return np.matmul(dy, self.W.value.swapaxes(1, 2), out=self._dx[:, :rows])


class BatchNormalization:
    """y = γ x̂ + β with x̂ = (x − mean) / √(variance + ε), over the batch (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    γ and β are (K, 1, O). The variance is the biased one. Evaluation takes running averages of mean and variance, which
    begin with the first batch: begun at 0 they would distort the first evaluations.
    """

    EPSILON = 1e-6
    KEPT = 0.9  # share of the old running average

    def __init__(self, gamma: Parameter, beta: Parameter, rows: int) -> None:
        self.gamma, self.beta = gamma, beta
        networks, _, size = gamma.value.shape
        dtype = gamma.value.dtype
        self._begun = False
        self._running_mean: Array = np.zeros((networks, 1, size), dtype)
        self._running_variance: Array = np.ones((networks, 1, size), dtype)
        self._normalized: Array = np.empty((networks, rows, size), dtype)
        self._y: Array = np.empty((networks, rows, size), dtype)

    def forward(self, x: Array, masks: Streams) -> Array:
        rows = x.shape[1]
        normalized, y = self._normalized[:, :rows], self._y[:, :rows]
        mean = np.add.reduce(x, axis=1, keepdims=True) / rows
        np.subtract(x, mean, out=normalized)
        np.multiply(normalized, normalized, out=y)
        variance = np.add.reduce(y, axis=1, keepdims=True) / rows
        self._follow(mean, variance)
        self._deviation = np.sqrt(variance + self.EPSILON)
        normalized /= self._deviation
        np.multiply(normalized, self.gamma.value, out=y)
        y += self.beta.value
        return y

    def evaluate(self, x: Array) -> Array:
        scale, shift = self.evaluated()
        y = np.multiply(x, scale, out=self._y[:, : x.shape[1]])
        y += shift
        return y

    def evaluated(self) -> tuple[Array, Array]:
        """Scale and shift (K, 1, O) of an evaluation."""
        scale: Array = self.gamma.value / np.sqrt(self._running_variance + self.EPSILON)
        return scale, self.beta.value - self._running_mean * scale

    def backward(self, dy: Array) -> Array:
        """dβ = Σ_B dy, dγ = Σ_B dy x̂, dx = γ/√(variance + ε) · (dy − dβ/B − x̂ dγ/B).

        The last two terms are what moves the mean and the variance of the batch.
        """
        rows = dy.shape[1]
        normalized, product = self._normalized[:, :rows], self._y[:, :rows]
        np.add.reduce(dy, axis=1, keepdims=True, out=self.beta.gradient)
        np.multiply(dy, normalized, out=product)
        np.add.reduce(product, axis=1, keepdims=True, out=self.gamma.gradient)
        np.multiply(normalized, self.gamma.gradient / rows, out=product)
        dy -= product
        dy -= self.beta.gradient / rows
        dy *= self.gamma.value / self._deviation
        return dy

    def go_on_from(self, other: BatchNormalization, networks: Indices) -> None:
        """Take over the running averages of these networks of another layer."""
        self._begun = other._begun
        self._running_mean = other._running_mean[networks]
        self._running_variance = other._running_variance[networks]

    def _follow(self, mean: Array, variance: Array) -> None:
        share = 1 - self.KEPT if self._begun else 1
        self._running_mean += share * (mean - self._running_mean)
        self._running_variance += share * (variance - self._running_variance)
        self._begun = True


class Relu:
    """y = max(x, 0); its gradient is 0 at exactly 0."""

    def __init__(self, shape: Shape, dtype: Dtype) -> None:
        # an array of zeros: against a scalar np.maximum is several times slower
        self._zeros: Array = np.zeros(shape, dtype)
        self._positive = np.empty(shape, np.bool_)

    def forward(self, x: Array, masks: Streams) -> Array:
        self._y = self.evaluate(x)
        return self._y

    def evaluate(self, x: Array) -> Array:
        return np.maximum(x, self._zeros[:, : x.shape[1]], out=x)

    def backward(self, dy: Array) -> Array:
        # a multiplication: assigning zeros through a boolean mask is ten times slower
        rows = dy.shape[1]
        dy *= np.greater(self._y, self._zeros[:, :rows], out=self._positive[:, :rows])
        return dy


class Sigmoid:
    """y = 1 / (1 + exp(−x)), written as ½ (1 + tanh ½x), which cannot overflow; dy/dx = y (1 − y)."""

    def __init__(self, shape: Shape, dtype: Dtype) -> None:
        self._slope: Array = np.empty(shape, dtype)

    def forward(self, x: Array, masks: Streams) -> Array:
        self._y = self.evaluate(x)
        return self._y

    def evaluate(self, x: Array) -> Array:
        x *= 0.5
        np.tanh(x, out=x)
        x += 1
        x *= 0.5
        return x

    def backward(self, dy: Array) -> Array:
        slope = np.subtract(1, self._y, out=self._slope[:, : dy.shape[1]])
        slope *= self._y
        dy *= slope
        return dy


class Tanh:
    """y = tanh(x); dy/dx = 1 − y²."""

    def __init__(self, shape: Shape, dtype: Dtype) -> None:
        self._slope: Array = np.empty(shape, dtype)

    def forward(self, x: Array, masks: Streams) -> Array:
        self._y = self.evaluate(x)
        return self._y

    def evaluate(self, x: Array) -> Array:
        return np.tanh(x, out=x)

    def backward(self, dy: Array) -> Array:
        slope = np.multiply(self._y, self._y, out=self._slope[:, : dy.shape[1]])
        np.subtract(1, slope, out=slope)
        dy *= slope
        return dy


class Dropout:
    """Drops each neuron with probability `ratio` while training; evaluation scales by the share kept.

    The plain form of Srivastava et al., 2014 (JMLR 15): y = x · [u > ratio], u uniform in [0, 1), unscaled. Each
    network has its own ratio; one of 0 draws nothing and changes nothing.
    """

    def __init__(self, ratios: Sequence[float], shape: Shape, dtype: Dtype) -> None:
        self.ratios = ratios
        self._dropped: Array = np.empty((len(ratios), 1, 1), dtype)
        self._dropped[:, 0, 0] = ratios
        self.kept: Array = np.empty_like(self._dropped)
        self.kept[:, 0, 0] = [1 - ratio for ratio in ratios]
        self._mask: Array = np.ones(shape, dtype)
        self._y: Array = np.empty(shape, dtype)

    def forward(self, x: Array, masks: Streams) -> Array:
        rows = x.shape[1]
        mask = self._mask[:, :rows]
        for network, ratio in enumerate(self.ratios):
            if ratio > 0:
                masks[network].random(out=mask[network], dtype=mask.dtype)
        np.greater(mask, self._dropped, out=mask)
        return np.multiply(x, mask, out=self._y[:, :rows])

    def evaluate(self, x: Array) -> Array:
        return np.multiply(x, self.kept, out=self._y[:, : x.shape[1]])

    def backward(self, dy: Array) -> Array:
        dy *= self._mask[:, : dy.shape[1]]
        return dy


ACTIVATIONS: Mapping[str, Callable[[Shape, Dtype], Layer]] = {"relu": Relu, "sigmoid": Sigmoid, "tanh": Tanh}
