"""All parameters of a network in one vector, and their gradients in another, so that a step is a few calls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from worker.nn.arrays import Array, Dtype


class Parameters:
    """`values` and `gradients`, in which the layers' matrices and vectors are views.

    The weight matrices come first: weight decay is for them alone.
    """

    def __init__(self, matrices: Sequence[tuple[int, int]], vectors: Sequence[int], dtype: Dtype) -> None:
        self.weights = sum(math.prod(shape) for shape in matrices)
        self.values: Array = np.zeros(self.weights + sum(vectors), dtype)
        self.gradients: Array = np.zeros_like(self.values)
        self._shapes: list[tuple[int, ...]] = [*matrices, *((size,) for size in vectors)]

    def views(self, vector: Array) -> list[Array]:
        """Return the matrices and vectors within `values`, `gradients`, or another vector laid out like them."""
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), self._shapes, strict=True)]

    def decay(self, rate: float) -> None:
        """Add λW, the gradient of ½ λ‖W‖², to the gradients of the weight matrices."""
        if rate > 0:
            self.gradients[: self.weights] += rate * self.values[: self.weights]
