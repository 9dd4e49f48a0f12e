"""The layers: forward while training, evaluate afterwards, backward from dL/dy to dL/dx.

A layer is made for at most `rows` rows at a time and keeps its buffers for them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from worker.nn.arrays import Array, Dtype, Rows


class Layer(Protocol):
    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        """Return y (B, O) for x (B, I) while training; remember what `backward` needs."""

    def evaluate(self, x: Array) -> Array:
        """Return y (B, O) for x (B, I) after training."""

    def backward(self, dy: Array) -> Array:
        """Return dL/dx (B, I) for dL/dy (B, O); write the gradients of the layer's own parameters."""


class FirstLayer(Protocol):
    """An affine layer that knows all images (N, I) and takes their row numbers instead of their pixels."""

    def forward(self, rows: Rows) -> Array: ...

    def evaluate(self, rows: Rows) -> Array: ...

    def backward(self, dy: Array) -> None: ...


class Affine:
    """y = x @ W + b, with x (B, I), W (I, O) and b (O,)."""

    def __init__(self, W: Array, b: Array, dW: Array, db: Array, rows: int) -> None:
        self.W, self.b, self.dW, self.db = W, b, dW, db
        inputs, outputs = W.shape
        self._y: Array = np.empty((rows, outputs), W.dtype)
        self._dx: Array = np.empty((rows, inputs), W.dtype)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        self._x = x
        return self.evaluate(x)

    def evaluate(self, x: Array) -> Array:
        y = np.matmul(x, self.W, out=self._y[: len(x)])
        y += self.b
        return y

    def backward(self, dy: Array) -> Array:
        """dW = xᵀ @ dy, db = Σ_B dy, dx = dy @ Wᵀ."""
        np.matmul(self._x.T, dy, out=self.dW)
        np.sum(dy, axis=0, out=self.db)
        return np.matmul(dy, self.W.T, out=self._dx[: len(dy)])


class AffineOfPixels:
    """The first layer: y = X[rows] @ W + b, with X (N, I). Nobody needs the gradient of pixels."""

    def __init__(self, X: Array, W: Array, b: Array, dW: Array, db: Array, rows: int) -> None:
        self.X, self.W, self.b, self.dW, self.db = X, W, b, dW, db
        self._y: Array = np.empty((rows, W.shape[1]), W.dtype)

    def forward(self, rows: Rows) -> Array:
        self._x = self.X[rows]
        y = np.matmul(self._x, self.W, out=self._y[: len(self._x)])
        y += self.b
        return y

    def evaluate(self, rows: Rows) -> Array:
        return self.forward(rows)

    def backward(self, dy: Array) -> None:
        np.matmul(self._x.T, dy, out=self.dW)
        np.sum(dy, axis=0, out=self.db)


class Relu:
    """y = max(x, 0); its gradient is 0 at exactly 0."""

    def __init__(self, size: int, rows: int, dtype: Dtype) -> None:
        # an array of zeros: against a scalar np.maximum is several times slower
        self._zeros: Array = np.zeros((rows, size), dtype)
        self._y: Array = np.empty((rows, size), dtype)

    def forward(self, x: Array, rng: np.random.Generator) -> Array:
        return self.evaluate(x)

    def evaluate(self, x: Array) -> Array:
        return np.maximum(x, self._zeros[: len(x)], out=self._y[: len(x)])

    def backward(self, dy: Array) -> Array:
        dy *= self._y[: len(dy)] > 0
        return dy
