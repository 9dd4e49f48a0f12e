"""A network in the style of the article's book (chapter 6), float64, plain NumPy: what ours is held against.

It shares no line with worker/hpo_worker/nn. A new array for every result, a dictionary of layers, mini-batches by
`np.random.choice` (with replacement), initial weights from N(0, 2/inputs), biases 0, softmax and mean cross-entropy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


class Affine:
    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, x, training):
        self.x = x
        return np.dot(x, self.W) + self.b

    def backward(self, dout):
        self.dW = np.dot(self.x.T, dout)
        self.db = np.sum(dout, axis=0)
        return np.dot(dout, self.W.T)


class Relu:
    def forward(self, x, training):
        self.mask = x <= 0
        out = x.copy()
        out[self.mask] = 0
        return out

    def backward(self, dout):
        dout[self.mask] = 0
        return dout


class Dropout:
    def __init__(self, ratio):
        self.ratio = ratio

    def forward(self, x, training):
        if not training:
            return x * (1.0 - self.ratio)
        self.mask = np.random.rand(*x.shape) > self.ratio
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


class BatchNormalization:
    """The running averages begin at 0, as the book's do; training accuracies of late epochs do not show it."""

    def __init__(self, size):
        self.gamma, self.beta = np.ones(size), np.zeros(size)
        self.running_mean, self.running_var = np.zeros(size), np.zeros(size)

    def forward(self, x, training):
        if training:
            mean = x.mean(axis=0)
            self.xc = x - mean
            var = np.mean(self.xc**2, axis=0)
            self.std = np.sqrt(var + 10e-7)
            self.xn = self.xc / self.std
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean
            self.running_var = 0.9 * self.running_var + 0.1 * var
            xn = self.xn
        else:
            xn = (x - self.running_mean) / np.sqrt(self.running_var + 10e-7)
        return self.gamma * xn + self.beta

    def backward(self, dout):
        batch = len(dout)
        self.dbeta = dout.sum(axis=0)
        self.dgamma = np.sum(self.xn * dout, axis=0)
        dxn = self.gamma * dout
        dxc = dxn / self.std
        dstd = -np.sum((dxn * self.xc) / (self.std * self.std), axis=0)
        dvar = 0.5 * dstd / self.std
        dxc += (2.0 / batch) * self.xc * dvar
        dmu = np.sum(dxc, axis=0)
        return dxc - dmu / batch


class SoftmaxWithLoss:
    def forward(self, x, t):
        self.t = t
        self.y = softmax(x)
        return -np.sum(np.log(self.y[np.arange(len(t)), t] + 1e-7)) / len(t)

    def backward(self):
        dx = self.y.copy()
        dx[np.arange(len(self.t)), self.t] -= 1
        return dx / len(self.t)


def softmax(x):
    x = np.exp(x - np.max(x, axis=1, keepdims=True))
    return x / np.sum(x, axis=1, keepdims=True)


class Network:
    """The weights' standard deviation is √(2/inputs) unless given."""

    def __init__(self, sizes, weight_std=None, weight_decay=0.0, dropout=0.0, batch_norm=False):
        self.depth, self.weight_decay = len(sizes) - 1, weight_decay
        self.params, self.layers, self.last_layer = {}, OrderedDict(), SoftmaxWithLoss()
        for i in range(1, self.depth + 1):
            scale = np.sqrt(2.0 / sizes[i - 1]) if weight_std is None else weight_std
            self.params[f"W{i}"] = scale * np.random.randn(sizes[i - 1], sizes[i])
            self.params[f"b{i}"] = np.zeros(sizes[i])
            self.layers[f"Affine{i}"] = Affine(self.params[f"W{i}"], self.params[f"b{i}"])
            if i == self.depth:
                break
            if batch_norm:
                layer = self.layers[f"BatchNorm{i}"] = BatchNormalization(sizes[i])
                self.params[f"gamma{i}"], self.params[f"beta{i}"] = layer.gamma, layer.beta
            self.layers[f"Relu{i}"] = Relu()
            if dropout:
                self.layers[f"Dropout{i}"] = Dropout(dropout)

    def predict(self, x, training=False):
        for layer in self.layers.values():
            x = layer.forward(x, training)
        return x

    def accuracy(self, x, t):
        with np.errstate(all="ignore"):  # a network that diverged
            return np.mean(np.argmax(self.predict(x), axis=1) == t)

    def loss(self, x, t):
        decay = 0
        for i in range(1, self.depth + 1):
            decay += 0.5 * self.weight_decay * np.sum(self.params[f"W{i}"] ** 2)
        return self.last_layer.forward(self.predict(x, training=True), t) + decay

    def gradient(self, x, t):
        self.loss(x, t)
        dout = self.last_layer.backward()
        for layer in reversed(self.layers.values()):
            dout = layer.backward(dout)
        grads = {}
        for i in range(1, self.depth + 1):
            affine = self.layers[f"Affine{i}"]
            grads[f"W{i}"] = affine.dW + self.weight_decay * affine.W
            grads[f"b{i}"] = affine.db
            if (norm := self.layers.get(f"BatchNorm{i}")) is not None:
                grads[f"gamma{i}"], grads[f"beta{i}"] = norm.dgamma, norm.dbeta
        return grads


@dataclass(frozen=True)
class Trained:
    """A network, and the images it has learned."""

    network: Network
    x: np.ndarray
    t: np.ndarray

    @property
    def training_accuracy(self) -> float:
        return float(self.network.accuracy(self.x, self.t))


def train(x, t, *, seed, epochs, hidden, learning_rate=0.01, batch=100, **network) -> Trained:
    """Train with SGD for whole epochs of len(x) // batch steps each.

    The book's scripts record at the beginning of an epoch, after its first step: the last of 201 records comes
    after 601 steps instead of 603. No figure shows the difference.
    """
    np.random.seed(seed)
    net = Network((x.shape[1], *hidden, 10), **network)
    with np.errstate(all="ignore"):
        for rows in _mini_batches(len(x), epochs, batch):
            grads = net.gradient(x[rows], t[rows])
            for name, value in net.params.items():
                value -= learning_rate * grads[name]
    return Trained(net, x, t)


def _mini_batches(images: int, epochs: int, batch: int) -> Iterator[np.ndarray]:
    for _ in range(epochs * max(images // batch, 1)):
        yield np.random.choice(images, batch)
