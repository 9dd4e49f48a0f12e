"""All parameters of a network in one vector, and their gradients in another, so that a step is a few calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worker.nn.arrays import Array, Dtype


class Parameter(NamedTuple):
    """A matrix or vector of a layer, and dL/d(value): views into the two vectors of all parameters."""

    value: Array
    gradient: Array


class Parameters:
    """`values` and `gradients`, with the weight matrices first: weight decay is for them alone."""

    def __init__(self, matrices: Sequence[tuple[int, int]], vectors: Sequence[int], dtype: Dtype) -> None:
        weights = sum(math.prod(shape) for shape in matrices)
        self.values: Array = np.zeros(weights + sum(vectors), dtype)
        self.gradients: Array = np.zeros_like(self.values)
        self._weights, self._weight_gradients = self.values[:weights], self.gradients[:weights]
        self._decay: Array = np.empty_like(self._weights)
        self.views: list[Parameter] = []
        start = 0
        for shape in [*matrices, *((size,) for size in vectors)]:
            part = slice(start, start + math.prod(shape))
            self.views.append(Parameter(self.values[part].reshape(shape), self.gradients[part].reshape(shape)))
            start = part.stop

    def add_weight_decay(self, rate: float) -> None:
        """Add λW, the gradient of ½ λ‖W‖², to the gradients of the weight matrices."""
        if rate > 0:
            np.multiply(self._weights, rate, out=self._decay)
            self._weight_gradients += self._decay
