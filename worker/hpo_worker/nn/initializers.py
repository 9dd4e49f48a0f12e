"""How large the initial weights are: a standard deviation for each shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


def he(inputs: int) -> float:
    """√(2/I), for layers followed by a ReLU, which passes half the variance on (He et al., 2015, arXiv:1502.01852)."""
    return math.sqrt(2.0 / inputs)


def xavier(inputs: int) -> float:
    """√(1/I), for layers followed by a sigmoid or tanh, near-linear around 0 (Glorot and Bengio, 2010)."""
    return math.sqrt(1.0 / inputs)


INITIALIZERS: Mapping[str, Callable[[int], float]] = {"he": he, "xavier": xavier}


def standard_deviation(initializer: str | float, inputs: int) -> float:
    """Return the standard deviation of the weights of a layer with so many inputs."""
    return INITIALIZERS[initializer](inputs) if isinstance(initializer, str) else initializer
