"""How a gradient g becomes a step of the parameters θ."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from worker.nn.arrays import Array


class Optimizer(Protocol):
    def step(self, theta: Array, g: Array) -> None:
        """Change θ in place; g may be overwritten."""


class Sgd:
    """θ ← θ − η g (Robbins and Monro, 1951)."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = learning_rate

    def step(self, theta: Array, g: Array) -> None:
        g *= self._rate
        theta -= g


class Momentum:
    """v ← μ v − η g, θ ← θ + v (Polyak, 1964)."""

    def __init__(self, learning_rate: float, momentum: float, like: Array) -> None:
        self._rate, self._momentum = learning_rate, momentum
        self._v: Array = np.zeros_like(like)

    def step(self, theta: Array, g: Array) -> None:
        g *= self._rate
        self._v *= self._momentum
        self._v -= g
        theta += self._v
