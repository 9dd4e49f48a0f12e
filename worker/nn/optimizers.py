"""How a gradient g becomes a step of the parameters θ; η is the learning rate, every operation elementwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from worker.nn.arrays import Array

# Keeps a division by the root of a sum of squares that is still 0 finite.
EPSILON = 1e-8


class Optimizer(Protocol):
    def step(self, theta: Array, g: Array) -> None:
        """Change θ in place; g is overwritten."""


class Sgd:
    """Stochastic gradient descent (Robbins and Monro, 1951): θ ← θ − η g."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = learning_rate

    def step(self, theta: Array, g: Array) -> None:
        g *= self._rate
        theta -= g


class Momentum:
    """The heavy ball (Polyak, 1964): v ← μ v − η g, θ ← θ + v."""

    def __init__(self, learning_rate: float, momentum: float, like: Array) -> None:
        self._rate, self._momentum = learning_rate, momentum
        self._v: Array = np.zeros_like(like)

    def step(self, theta: Array, g: Array) -> None:
        g *= self._rate
        self._v *= self._momentum
        self._v -= g
        theta += self._v


class Nesterov:
    """Nesterov's accelerated gradient (1983; Sutskever et al., 2013): v ← μ v − η ∇L(θ + μ v), θ ← θ + v.

    Kept is θ' = θ + μ v, the point where the gradient is taken (Bengio et al., 2012, arXiv:1212.0901), so that
    v ← μ v − η g, θ' ← θ' + μ v − η g.
    """

    def __init__(self, learning_rate: float, momentum: float, like: Array) -> None:
        self._rate, self._momentum = learning_rate, momentum
        self._v: Array = np.zeros_like(like)
        self._ahead: Array = np.empty_like(like)

    def step(self, theta: Array, g: Array) -> None:
        g *= self._rate
        self._v *= self._momentum
        self._v -= g
        np.multiply(self._v, self._momentum, out=self._ahead)
        self._ahead -= g
        theta += self._ahead


class AdaGrad:
    """A step that shrinks where gradients were large (Duchi et al., 2011): h ← h + g², θ ← θ − η g / (√h + ε)."""

    def __init__(self, learning_rate: float, like: Array) -> None:
        self._rate = learning_rate
        self._h: Array = np.zeros_like(like)
        self._scratch: Array = np.empty_like(like)

    def step(self, theta: Array, g: Array) -> None:
        self._h += np.multiply(g, g, out=self._scratch)
        _scaled_step(theta, g, self._h, self._rate, self._scratch)


class RmsProp:
    """AdaGrad that forgets (Tieleman and Hinton, 2012): h ← ρ h + (1 − ρ) g², θ ← θ − η g / (√h + ε), ρ = 0.99."""

    KEPT = 0.99

    def __init__(self, learning_rate: float, like: Array) -> None:
        self._rate = learning_rate
        self._h: Array = np.zeros_like(like)
        self._scratch: Array = np.empty_like(like)

    def step(self, theta: Array, g: Array) -> None:
        _follow(self._h, self.KEPT, np.multiply(g, g, out=self._scratch))
        _scaled_step(theta, g, self._h, self._rate, self._scratch)


class Adam:
    """Momentum and RMSprop, both freed of their start at 0 (Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1).

    m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − η m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ) and
    v̂ = v / (1 − β₂ᵗ); β₁ = 0.9, β₂ = 0.999. Multiplied out, ε stands beside √v as ε √(1 − β₂ᵗ).
    """

    BETA_1, BETA_2 = 0.9, 0.999

    def __init__(self, learning_rate: float, like: Array) -> None:
        self._rate = learning_rate
        self._t = 0
        self._m: Array = np.zeros_like(like)
        self._v: Array = np.zeros_like(like)
        self._scratch: Array = np.empty_like(like)

    def step(self, theta: Array, g: Array) -> None:
        self._t += 1
        _follow(self._v, self.BETA_2, np.multiply(g, g, out=self._scratch))
        _follow(self._m, self.BETA_1, g)
        np.copyto(g, self._m)
        root = math.sqrt(1 - self.BETA_2**self._t)
        rate = self._rate * root / (1 - self.BETA_1**self._t)
        _scaled_step(theta, g, self._v, rate, self._scratch, EPSILON * root)


def _follow(average: Array, kept: float, news: Array) -> None:
    """average ← kept · average + (1 − kept) · news; news is overwritten."""
    average *= kept
    news *= 1 - kept
    average += news


def _scaled_step(theta: Array, g: Array, squares: Array, rate: float, scratch: Array, epsilon: float = EPSILON) -> None:
    """θ ← θ − rate · g / (√squares + ε); g is overwritten."""
    np.sqrt(squares, out=scratch)
    scratch += epsilon
    g *= rate
    g /= scratch
    theta -= g


OPTIMIZERS: Mapping[str, Callable[[float, float, Array], Optimizer]] = {
    "sgd": lambda rate, momentum, like: Sgd(rate),
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": lambda rate, momentum, like: AdaGrad(rate, like),
    "rmsprop": lambda rate, momentum, like: RmsProp(rate, like),
    "adam": lambda rate, momentum, like: Adam(rate, like),
}

# Those whose step only scales and adds gradients, which a first layer in function space needs.
LINEAR = frozenset({"sgd", "momentum", "nesterov"})
