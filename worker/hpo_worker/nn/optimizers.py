"""How a gradient g becomes a step of the parameters θ, both (K, …): every operation is elementwise.

The learning rate η and the momentum μ are each network's own, (K, 1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import numpy as np

from hpo_worker.nn.arrays import Array, Indices

# Keeps a division by the root of a sum of squares that is still 0 finite.
EPSILON = 1e-8


class Optimizer(Protocol):
    """scale (K, 1): what a loss is to be multiplied with before its gradient is taken.

    A step that is linear in g has its learning rate there: it multiplies B x C numbers instead of all of θ.
    shrinks: whether weight decay shrinks the weights, (1 − ηλ) W, before the step, instead of being in g.
    """

    scale: Array
    shrinks: bool

    def step(self, theta: Array, g: Array) -> None:
        """Change θ in place for g, the gradient of the scaled loss; g is overwritten."""


class Sgd:
    """Stochastic gradient descent (Robbins and Monro, 1951): θ ← θ − η g. Here g comes with η in it.

    With weight decay that is θ − η (g + λ W) = (1 − ηλ) W − η g: one product less than a sum of gradients.
    """

    shrinks = True

    def __init__(self, learning_rate: Array) -> None:
        self.scale = learning_rate

    def step(self, theta: Array, g: Array) -> None:
        theta -= g


class Momentum:
    """The heavy ball (Polyak, 1964): v ← μ v − η g, θ ← θ + v. Here g comes with η in it."""

    shrinks = False

    def __init__(self, learning_rate: Array, momentum: Array, like: Array) -> None:
        self.scale, self._momentum = learning_rate, momentum
        self._v: Array = np.zeros_like(like)

    def step(self, theta: Array, g: Array) -> None:
        self._v *= self._momentum
        self._v -= g
        theta += self._v


class Nesterov(Momentum):
    """Nesterov's accelerated gradient (1983; Sutskever et al., 2013): v ← μ v − η ∇L(θ + μ v), θ ← θ + v.

    Kept is θ' = θ + μ v, the point where the gradient is taken (Bengio et al., 2012, arXiv:1212.0901), so that
    v ← μ v − η g, θ' ← θ' + μ v − η g. Here g comes with η in it.
    """

    def __init__(self, learning_rate: Array, momentum: Array, like: Array) -> None:
        super().__init__(learning_rate, momentum, like)
        self._ahead: Array = np.empty_like(like)

    def step(self, theta: Array, g: Array) -> None:
        self._v *= self._momentum
        self._v -= g
        np.multiply(self._v, self._momentum, out=self._ahead)
        self._ahead -= g
        theta += self._ahead


class AdaGrad:
    """A step that shrinks where gradients were large (Duchi et al., 2011): h ← h + g², θ ← θ − η g / (√h + ε)."""

    shrinks = False

    def __init__(self, learning_rate: Array, like: Array) -> None:
        self._rate, self.scale = learning_rate, np.ones_like(learning_rate)
        self._h: Array = np.zeros_like(like)
        self._scratch: Array = np.empty_like(like)

    def step(self, theta: Array, g: Array) -> None:
        self._h += np.multiply(g, g, out=self._scratch)
        _scaled_step(theta, g, self._h, self._rate, self._scratch)


class RmsProp(AdaGrad):
    """AdaGrad that forgets (Tieleman and Hinton, 2012): h ← ρ h + (1 − ρ) g², θ ← θ − η g / (√h + ε), ρ = 0.99."""

    KEPT = 0.99

    def step(self, theta: Array, g: Array) -> None:
        _follow(self._h, self.KEPT, np.multiply(g, g, out=self._scratch))
        _scaled_step(theta, g, self._h, self._rate, self._scratch)


class Adam:
    """Momentum and RMSprop, both freed of their start at 0 (Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1).

    m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − η m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ) and
    v̂ = v / (1 − β₂ᵗ); β₁ = 0.9, β₂ = 0.999. Multiplied out, ε stands beside √v as ε √(1 − β₂ᵗ).
    """

    BETA_1, BETA_2 = 0.9, 0.999
    shrinks = False

    def __init__(self, learning_rate: Array, like: Array) -> None:
        self._rate, self.scale = learning_rate, np.ones_like(learning_rate)
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
        rate = self._rate * (root / (1 - self.BETA_1**self._t))
        _scaled_step(theta, g, self._v, rate, self._scratch, EPSILON * root)


def _follow(average: Array, kept: float, news: Array) -> None:
    """average ← kept · average + (1 − kept) · news; news is overwritten."""
    average *= kept
    news *= 1 - kept
    average += news


def _scaled_step(theta: Array, g: Array, squares: Array, rate: Array, scratch: Array, epsilon: float = EPSILON) -> None:
    """θ ← θ − rate · g / (√squares + ε); g is overwritten."""
    np.sqrt(squares, out=scratch)
    scratch += epsilon
    g *= rate
    g /= scratch
    theta -= g


OPTIMIZERS: Mapping[str, Callable[[Array, Array, Array], Optimizer]] = {
    "sgd": lambda rate, momentum, like: Sgd(rate),
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": lambda rate, momentum, like: AdaGrad(rate, like),
    "rmsprop": lambda rate, momentum, like: RmsProp(rate, like),
    "adam": lambda rate, momentum, like: Adam(rate, like),
}

# Those whose step only scales and adds gradients, which a first layer in function space needs.
LINEAR = frozenset({"sgd", "momentum", "nesterov"})

Kind = TypeVar("Kind", bound=Optimizer)


def only(optimizer: Kind, networks: Indices) -> Kind:
    """Return the optimizer of these networks, as it is now: each of its arrays has a row for each network."""
    other = copy.copy(optimizer)
    for name, value in vars(optimizer).items():
        if isinstance(value, np.ndarray):
            setattr(other, name, value[networks])
    return other
