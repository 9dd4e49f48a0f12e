"""The multi-layer perceptron: affine, batch normalization, activation and dropout in turn, and its gradient."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from hpo_worker.nn.arrays import Array, Dtype, Indices, Labels
from hpo_worker.nn.first_layers import AffineInFunctionSpace, AffineOfPixels, FirstLayer
from hpo_worker.nn.initializers import standard_deviation
from hpo_worker.nn.layers import ACTIVATIONS, Affine, BatchNormalization, Dropout, Layer, Streams
from hpo_worker.nn.losses import cross_entropy_gradient
from hpo_worker.nn.optimizers import Optimizer
from hpo_worker.nn.parameters import Parameter, Parameters


@dataclass(frozen=True)
class Architecture:
    """What a network is made of between the pixels and the classes.

    Networks side by side share the first four; the others are each one's own.
    """

    hidden_sizes: Sequence[int]
    classes: int
    activation: str = "relu"
    batch_norm: bool = False
    weight_init: str | float = "he"
    dropout: float = 0.0
    weight_decay: float = 0.0

    @property
    def shape(self) -> tuple[object, ...]:
        return tuple(self.hidden_sizes), self.classes, self.activation, self.batch_norm


class Network:
    """K networks side by side over the images X (N, I) that are their only input, named by their row numbers.

    Each has an architecture, all of one shape, and a stream that its initial weights are drawn from. With the images'
    Gram matrix their first layers are kept in function space. At most `rows` rows go through them at a time.
    """

    def __init__(
        self,
        architectures: Sequence[Architecture],
        X: Array,
        rows: int,
        streams: Streams,
        dtype: Dtype = np.float32,
        gram: Array | None = None,
    ) -> None:
        self._architectures, self._X, self._gram, self._rows = architectures, X, gram, rows
        self._dtype: Dtype = dtype
        shape = architectures[0]
        if any(each.shape != shape.shape for each in architectures):
            raise ValueError("networks side by side are of one shape")
        pairs = list(itertools.pairwise([X.shape[1], *shape.hidden_sizes, shape.classes]))
        matrices = [pairs[0] if gram is None else (len(X), pairs[0][1]), *pairs[1:]]
        self.parameters = Parameters(len(architectures), matrices, _vectors(shape), dtype)
        for network, (architecture, stream) in enumerate(zip(architectures, streams, strict=True)):
            for number, pair in enumerate(pairs):
                W = _drawn(pair, architecture.weight_init, stream, dtype)
                self.parameters.views[number].value[network] = X @ W if number == 0 and gram is not None else W
        self._assemble()
        for layer in _normalizations(self):
            layer.gamma.value[:] = 1

    def _assemble(self) -> None:
        """Make the layers around the parameters."""
        matrices = iter(self.parameters.views[: len(self._architectures[0].hidden_sizes) + 1])
        vectors = iter(self.parameters.views[len(self._architectures[0].hidden_sizes) + 1 :])
        self._decay: Array = np.array([[each.weight_decay] for each in self._architectures], self._dtype)
        self._first: FirstLayer
        if self._gram is None:
            self._first = AffineOfPixels(self._X, next(matrices), self._bias(vectors), self._rows)
        else:
            self._first = AffineInFunctionSpace(self._gram, next(matrices), self._bias(vectors), self._rows)
        self._layers = list(self._above_first(matrices, vectors))

    def _bias(self, vectors: Iterator[Parameter]) -> Parameter | None:
        # Batch normalization subtracts the mean, and with it any bias; its β takes the bias's place.
        return None if self._architectures[0].batch_norm else next(vectors)

    def _above_first(self, matrices: Iterator[Parameter], vectors: Iterator[Parameter]) -> Iterator[Layer]:
        shape = self._architectures[0]
        ratios = [each.dropout for each in self._architectures]
        widest = len(self._architectures) * self._rows * max(*shape.hidden_sizes, shape.classes)
        scratch: list[Array] = [np.empty(widest, self._dtype) for _ in range(2)]
        for number, size in enumerate(shape.hidden_sizes, start=1):
            buffer = (len(self._architectures), self._rows, size)
            if shape.batch_norm:
                yield BatchNormalization(next(vectors), next(vectors), self._rows)
            yield ACTIVATIONS[shape.activation](buffer, self._dtype)
            if any(ratios):
                yield Dropout(ratios, buffer, self._dtype)
            bias = next(vectors) if number == len(shape.hidden_sizes) else self._bias(vectors)
            yield Affine(next(matrices), bias, self._rows, scratch[number % 2])

    def scores(self, rows: slice) -> Array:
        """Return the last layer's output (K, B, C) for these images, after training."""
        x = self._first.evaluate(rows)
        for layer in self._layers:
            x = layer.evaluate(x)
        return x

    def step(
        self, optimizer: Optimizer, rows: Indices, labels: Labels, masks: Streams, shares: Array | None = None
    ) -> None:
        """Change θ by a step of the optimizer against L."""
        if optimizer.shrinks:
            gradient = self._gradient_of_data(rows, labels, masks, optimizer.scale, shares)
            self.parameters.shrink(self._decay * optimizer.scale)
        else:
            gradient = self.gradient(rows, labels, masks, optimizer.scale, shares)
        optimizer.step(self.parameters.values, gradient)

    def gradient(
        self, rows: Indices, labels: Labels, masks: Streams, scale: Array | None = None, shares: Array | None = None
    ) -> Array:
        """Return dL/dθ (K, …) for L = scale · (the mean cross-entropy over these images + ½ λ Σ W²).

        scale (K, 1) is 1 when left out; shares (B, 1) is what each row counts in the mean, 1/B when left out.
        A network's dropout masks come from its own stream.
        """
        scale = np.ones_like(self._decay) if scale is None else scale
        self._gradient_of_data(rows, labels, masks, scale, shares)
        self.parameters.add_weight_decay(self._decay * scale)
        return self.parameters.gradients

    def _gradient_of_data(
        self, rows: Indices, labels: Labels, masks: Streams, scale: Array, shares: Array | None
    ) -> Array:
        shares = np.full((1, 1), 1 / len(rows), self._dtype) if shares is None else shares
        x = self._first.forward(rows)
        for layer in self._layers:
            x = layer.forward(x, masks)
        dy = cross_entropy_gradient(x, labels, scale[:, np.newaxis] * shares)
        for layer in reversed(self._layers):
            dy = layer.backward(dy)
        self._first.backward(dy)
        return self.parameters.gradients

    def only(self, networks: Indices) -> Self:
        """Return these of the networks, as they are now."""
        other = copy.copy(self)
        other._architectures = [self._architectures[network] for network in networks]
        other.parameters = self.parameters.only(networks)
        other._assemble()
        for layer, before in zip(_normalizations(other), _normalizations(self), strict=True):
            layer.go_on_from(before, networks)
        return other

    def over(self, X: Array) -> Self:
        """Return the same networks, parameters shared, over other images."""
        if not isinstance(self._first, AffineOfPixels):
            raise TypeError("a network in function space knows its own images only")
        other = copy.copy(self)
        other._first = AffineOfPixels(X, self._first.W, self._first.b, self._rows)
        return other

    def affine_layers(self) -> list[tuple[Array, Array]]:
        """What evaluation computes, as W (K, I, O) and b (K, 1, O) of each layer, with the activation between two.

        Batch normalization's averages and the share that dropout keeps are in them.
        """
        if not isinstance(self._first, AffineOfPixels):
            raise TypeError("a network in function space does not have the weights of its first layer")
        W, b = self._first.W.value.copy(), _bias_of(self._first.b, self._first.W)
        share: Array = np.ones((len(W), 1, 1), self._dtype)
        found = []
        for layer in self._layers:
            if isinstance(layer, BatchNormalization):
                scale, shift = layer.evaluated()
                W, b = W * scale, b * scale + shift
            elif isinstance(layer, Dropout):
                share = layer.kept
            elif isinstance(layer, Affine):
                found.append((W, b))
                W, b = layer.W.value * share, _bias_of(layer.b, layer.W)
                share = np.ones_like(share)
        return [*found, (W, b)]


def _bias_of(b: Parameter | None, W: Parameter) -> Array:
    return np.zeros_like(W.value[:, :1]) if b is None else b.value.copy()


def _normalizations(network: Network) -> list[BatchNormalization]:
    return [layer for layer in network._layers if isinstance(layer, BatchNormalization)]


def _drawn(shape: tuple[int, int], weight_init: str | float, rng: np.random.Generator, dtype: Dtype) -> Array:
    """Return initial weights (I, O); drawn in double precision, so that both types start from the same ones."""
    return (rng.standard_normal(shape) * standard_deviation(weight_init, shape[0])).astype(dtype)


def _vectors(architecture: Architecture) -> list[int]:
    """Return the sizes of the vectors in the order of their layers: biases, or γ and β of each hidden layer."""
    each = 2 if architecture.batch_norm else 1
    return [size for size in architecture.hidden_sizes for _ in range(each)] + [architecture.classes]
