"""The first layer, which knows all images and takes row numbers: in the space of pixels, or in function space.

Nobody needs the gradient of pixels, so `backward` returns nothing.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hpo_worker.nn.arrays import Array, Indices
from hpo_worker.nn.parameters import Parameter


class FirstLayer(Protocol):
    def forward(self, rows: Indices) -> Array:
        """Return y (K, B, O) for these images while training; remember what `backward` needs."""

    def evaluate(self, rows: slice) -> Array:
        """Return y (K, B, O) for these images after training."""

    def backward(self, dy: Array) -> None:
        """Write the gradients of the layer's parameters for dL/dy (K, B, O)."""


class AffineOfPixels:
    """y = X[rows] @ W + b, with X (N, I), W (K, I, O) and b (K, 1, O)."""

    def __init__(self, X: Array, W: Parameter, b: Parameter | None, rows: int) -> None:
        self.X, self.W, self.b = X, W, b
        networks, inputs, outputs = W.value.shape
        self._x: Array = np.empty((rows, inputs), W.value.dtype)
        self._y: Array = np.empty((networks, rows, outputs), W.value.dtype)
        self._ones: Array = np.ones((1, rows), W.value.dtype)

    def forward(self, rows: Indices) -> Array:
        # mode="clip": with "raise", np.take would fill another buffer first
        return self._affine(np.take(self.X, rows, axis=0, out=self._x[: len(rows)], mode="clip"))

    def evaluate(self, rows: slice) -> Array:
        return self._affine(self.X[rows])

    def backward(self, dy: Array) -> None:
        """dW = xᵀ @ dy, db = Σ_B dy."""
        rows = dy.shape[1]
        np.matmul(self._x[:rows].T, dy, out=self.W.gradient)
        if self.b is not None:
            np.matmul(self._ones[:, :rows], dy, out=self.b.gradient)

    def _affine(self, x: Array) -> Array:
        y = np.matmul(x, self.W.value, out=self._y[:, : len(x)])
        if self.b is not None:
            y += self.b.value
        return y


class AffineInFunctionSpace:
    """y = U[rows] + b, where U = X W (K, N, O) is kept for all images instead of W.

    A gradient with respect to W is dW = X[rows]ᵀ @ dy, so that what a step along it does to U is
    X dW = X X[rows]ᵀ @ dy = G[rows]ᵀ @ dy, with the Gram matrix G = X Xᵀ. What an optimizer does to W it does to U,
    as long as it only scales and adds gradients (sgd, momentum, nesterov; weight decay too). It is exact, and costs
    less while the images are fewer than about three times the pixels. G is the same for all networks of a study.
    """

    def __init__(self, gram: Array, U: Parameter, b: Parameter | None, rows: int) -> None:
        self.gram, self.U, self.b = gram, U, b
        networks, images, outputs = U.value.shape
        self._gram: Array = np.empty((rows, images), U.value.dtype)
        self._y: Array = np.empty((networks, rows, outputs), U.value.dtype)
        self._ones: Array = np.ones((1, rows), U.value.dtype)

    def forward(self, rows: Indices) -> Array:
        self._rows = rows
        y = np.take(self.U.value, rows, axis=1, out=self._y[:, : len(rows)], mode="clip")
        if self.b is not None:
            y += self.b.value
        return y

    def evaluate(self, rows: slice) -> Array:
        u = self.U.value[:, rows]
        return np.add(u, 0 if self.b is None else self.b.value, out=self._y[:, : u.shape[1]])

    def backward(self, dy: Array) -> None:
        """dU = G[rows]ᵀ @ dy, db = Σ_B dy."""
        rows = dy.shape[1]
        gram = np.take(self.gram, self._rows, axis=0, out=self._gram[:rows], mode="clip")
        np.matmul(gram.T, dy, out=self.U.gradient)
        if self.b is not None:
            np.matmul(self._ones[:, :rows], dy, out=self.b.gradient)


def function_space_pays(images: int, pixels: int, steps: int, batch_size: int) -> bool:
    """Whether an epoch of so many steps, evaluated on all images, multiplies fewer numbers in function space."""
    in_function_space = steps * batch_size * images
    in_pixels = steps * 2 * batch_size * pixels + images * pixels
    return in_function_space < in_pixels
