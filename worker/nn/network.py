"""The multi-layer perceptron: affine layers with what stands between them, and its gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.nn.arrays import Array, Dtype, Labels, Rows
from worker.nn.initializers import standard_deviation
from worker.nn.layers import Affine, AffineOfPixels, Layer, Relu
from worker.nn.losses import cross_entropy_gradient
from worker.nn.parameters import Parameters


@dataclass(frozen=True)
class Architecture:
    """What a network is made of, from the pixels to the classes."""

    inputs: int
    hidden_sizes: Sequence[int]
    classes: int
    weight_init: str | float = "he"
    weight_decay: float = 0.0


class Network:
    def __init__(
        self, architecture: Architecture, images: Array, rows: int, rng: np.random.Generator, dtype: Dtype
    ) -> None:
        sizes = [architecture.inputs, *architecture.hidden_sizes, architecture.classes]
        shapes = list(itertools.pairwise(sizes))
        self.parameters = Parameters(shapes, sizes[1:], dtype)
        self._weight_decay = architecture.weight_decay
        values = self.parameters.views(self.parameters.values)
        gradients = self.parameters.views(self.parameters.gradients)
        depth = len(shapes)
        for W, (inputs, _) in zip(values, shapes, strict=False):
            W[:] = rng.standard_normal(W.shape) * standard_deviation(architecture.weight_init, inputs)
        affine = list(zip(values[:depth], values[depth:], gradients[:depth], gradients[depth:], strict=True))
        self._first = AffineOfPixels(images, *affine[0], rows)
        self._layers: list[Layer] = []
        for size, parameters in zip(architecture.hidden_sizes, affine[1:], strict=True):
            self._layers += [Relu(size, rows, dtype), Affine(*parameters, rows)]

    def scores(self, rows: Rows) -> Array:
        """Return the last layer's output (B, C) for these images, after training."""
        x = self._first.evaluate(rows)
        for layer in self._layers:
            x = layer.evaluate(x)
        return x

    def gradient(self, rows: Rows, labels: Labels, rng: np.random.Generator) -> Array:
        """Return dL/dθ of the mean cross-entropy over these images + ½ λ Σ W²."""
        x = self._first.forward(rows)
        for layer in self._layers:
            x = layer.forward(x, rng)
        dy = cross_entropy_gradient(x, labels)
        for layer in reversed(self._layers):
            dy = layer.backward(dy)
        self._first.backward(dy)
        self.parameters.decay(self._weight_decay)
        return self.parameters.gradients
