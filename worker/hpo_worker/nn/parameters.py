"""All parameters of K networks, a row each, and their gradients beside them, so that a step is a few calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from hpo_worker.nn.arrays import Array, Dtype, Indices


class Parameter(NamedTuple):
    """The matrices (K, I, O) or vectors (K, 1, O) of a layer, and dL/d(value): views into all parameters."""

    value: Array
    gradient: Array


class Parameters:
    """`values` and `gradients` (K, all of a network), weight matrices first: weight decay is for them alone."""

    def __init__(
        self, networks: int, matrices: Sequence[tuple[int, int]], vectors: Sequence[int], dtype: Dtype
    ) -> None:
        self._form = (matrices, vectors, dtype)
        shapes = [*matrices, *((1, size) for size in vectors)]
        weights = sum(math.prod(shape) for shape in matrices)
        self.values: Array = np.zeros((networks, sum(math.prod(shape) for shape in shapes)), dtype)
        self.gradients: Array = np.zeros_like(self.values)
        self._weights, self._weight_gradients = self.values[:, :weights], self.gradients[:, :weights]
        self._decay: Array = np.empty((networks, weights), dtype)
        self.views: list[Parameter] = []
        start = 0
        for shape in shapes:
            part = slice(start, start + math.prod(shape))
            value, gradient = (each[:, part].reshape(networks, *shape) for each in (self.values, self.gradients))
            self.views.append(Parameter(value, gradient))
            start = part.stop

    def add_weight_decay(self, rates: Array) -> None:
        """Add λW, the gradient of ½ λ‖W‖², to the gradients of the weight matrices; λ is (K, 1)."""
        if rates.any():
            np.multiply(self._weights, rates, out=self._decay)
            self._weight_gradients += self._decay

    def shrink(self, rates: Array) -> None:
        """W ← (1 − rate) W, the step of plain gradient descent against ½ λ‖W‖² with rate = ηλ, (K, 1)."""
        if rates.any():
            self._weights *= 1 - rates

    def only(self, networks: Indices) -> Self:
        """Return the parameters of these networks."""
        other = type(self)(len(networks), *self._form)
        other.values[:] = self.values[networks]
        return other
