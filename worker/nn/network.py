"""The multi-layer perceptron: affine, batch normalization, activation and dropout in turn, and its gradient."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from worker.nn.arrays import Array, Dtype, Indices, Labels, Rows
from worker.nn.first_layers import AffineInFunctionSpace, AffineOfPixels, FirstLayer
from worker.nn.initializers import standard_deviation
from worker.nn.layers import ACTIVATIONS, Affine, BatchNormalization, Dropout, Layer
from worker.nn.losses import cross_entropy_gradient
from worker.nn.parameters import Parameter, Parameters


@dataclass(frozen=True)
class Architecture:
    """What a network is made of between the pixels and the classes."""

    hidden_sizes: Sequence[int]
    classes: int
    activation: str = "relu"
    weight_init: str | float = "he"
    batch_norm: bool = False
    dropout: float = 0.0
    weight_decay: float = 0.0


class Network:
    """A network over the images X (N, I) that are its only input, named by their row numbers.

    With their Gram matrix its first layer is kept in function space. At most `rows` rows go through it at a time.
    """

    def __init__(
        self,
        architecture: Architecture,
        X: Array,
        rows: int,
        rng: np.random.Generator,
        dtype: Dtype = np.float32,
        gram: Array | None = None,
    ) -> None:
        shapes = list(itertools.pairwise([X.shape[1], *architecture.hidden_sizes, architecture.classes]))
        weights = [_drawn(shape, architecture.weight_init, rng, dtype) for shape in shapes]
        if gram is not None:
            weights[0] = X @ weights[0]
        self._architecture, self._rows, self._dtype = architecture, rows, dtype
        self.parameters = Parameters([W.shape for W in weights], _vectors(architecture), dtype)
        matrices = iter(self.parameters.views[: len(weights)])
        vectors = iter(self.parameters.views[len(weights) :])
        for W, drawn in zip(self.parameters.views, weights, strict=False):
            W.value[:] = drawn
        self._first: FirstLayer
        if gram is None:
            self._first = AffineOfPixels(X, next(matrices), self._bias(vectors), rows)
        else:
            self._first = AffineInFunctionSpace(gram, next(matrices), self._bias(vectors), rows)
        self._layers = list(self._above_first(matrices, vectors))

    def _bias(self, vectors: Iterator[Parameter]) -> Parameter | None:
        # The mean that batch normalization takes off takes the bias with it; its β stands for it.
        return None if self._architecture.batch_norm else next(vectors)

    def _above_first(self, matrices: Iterator[Parameter], vectors: Iterator[Parameter]) -> Iterator[Layer]:
        sizes = self._architecture.hidden_sizes
        for number, size in enumerate(sizes, start=1):
            if self._architecture.batch_norm:
                yield BatchNormalization(next(vectors), next(vectors), self._rows)
            yield ACTIVATIONS[self._architecture.activation](size, self._rows, self._dtype)
            if self._architecture.dropout > 0:
                yield Dropout(self._architecture.dropout, size, self._rows, self._dtype)
            bias = next(vectors) if number == len(sizes) else self._bias(vectors)
            yield Affine(next(matrices), bias, self._rows)

    def scores(self, rows: Rows) -> Array:
        """Return the last layer's output (B, C) for these images, after training."""
        x = self._first.evaluate(rows)
        for layer in self._layers:
            x = layer.evaluate(x)
        return x

    def gradient(self, rows: Indices, labels: Labels, rng: np.random.Generator) -> Array:
        """Return dL/dθ for L = the mean cross-entropy over these images + ½ λ Σ W²; dropout masks come from rng."""
        x = self._first.forward(rows)
        for layer in self._layers:
            x = layer.forward(x, rng)
        dy = cross_entropy_gradient(x, labels)
        for layer in reversed(self._layers):
            dy = layer.backward(dy)
        self._first.backward(dy)
        self.parameters.add_weight_decay(self._architecture.weight_decay)
        return self.parameters.gradients

    def over(self, X: Array) -> Network:
        """Return this very network over other images."""
        if not isinstance(self._first, AffineOfPixels):
            raise TypeError("a network in function space knows its own images only")
        other = copy.copy(self)
        other._first = AffineOfPixels(X, self._first.W, self._first.b, self._rows)
        return other


def _drawn(shape: tuple[int, int], weight_init: str | float, rng: np.random.Generator, dtype: Dtype) -> Array:
    """Return initial weights (I, O); drawn in double precision, so that both types start from the same ones."""
    return (rng.standard_normal(shape) * standard_deviation(weight_init, shape[0])).astype(dtype)


def _vectors(architecture: Architecture) -> list[int]:
    """Return the sizes of the vectors in the order of their layers: biases, or γ and β of each hidden layer."""
    each = 2 if architecture.batch_norm else 1
    return [size for size in architecture.hidden_sizes for _ in range(each)] + [architecture.classes]
