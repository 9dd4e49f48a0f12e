"""The optimizers against their published rules, written here a second time, number by number."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from hpo_worker.nn.optimizers import LINEAR, OPTIMIZERS, Optimizer

RATE, MOMENTUM, STEPS = 0.05, 0.8, 40
START = [0.7, -1.3, 2.0, 1e-3]
CURVATURE = [3.0, 0.5, 8.0, 1.0]


def slope(i: int, at: float) -> float:
    """The gradient of a crooked bowl."""
    return CURVATURE[i] * at + 0.3 * math.sin(5 * at)


def sgd(i: int, x: float) -> Iterator[float]:
    while True:
        x = x - RATE * slope(i, x)
        yield x


def momentum(i: int, x: float) -> Iterator[float]:
    """Polyak: x(t+1) = x(t) − η ∇ + μ (x(t) − x(t−1))."""
    before = x
    while True:
        x, before = x - RATE * slope(i, x) + MOMENTUM * (x - before), x
        yield x


def nesterov(i: int, x: float) -> Iterator[float]:
    """Sutskever et al.: the gradient at x + μ v, which is also the point that is shown."""
    v = 0.0
    while True:
        v = MOMENTUM * v - RATE * slope(i, x + MOMENTUM * v)
        x = x + v
        yield x + MOMENTUM * v


def adagrad(i: int, x: float) -> Iterator[float]:
    seen: list[float] = []
    while True:
        seen.append(slope(i, x))
        x = x - RATE * seen[-1] / (math.sqrt(sum(g * g for g in seen)) + 1e-8)
        yield x


def rmsprop(i: int, x: float) -> Iterator[float]:
    seen: list[float] = []
    while True:
        seen.insert(0, slope(i, x))
        mean_square = sum(0.01 * 0.99**age * g * g for age, g in enumerate(seen))
        x = x - RATE * seen[0] / (math.sqrt(mean_square) + 1e-8)
        yield x


def adam(i: int, x: float) -> Iterator[float]:
    """Kingma and Ba, algorithm 1, with its moments as sums over all gradients so far."""
    seen: list[float] = []
    while True:
        seen.insert(0, slope(i, x))
        t = len(seen)
        m = sum(0.1 * 0.9**age * g for age, g in enumerate(seen)) / (1 - 0.9**t)
        v = sum(0.001 * 0.999**age * g * g for age, g in enumerate(seen)) / (1 - 0.999**t)
        x = x - RATE * m / (math.sqrt(v) + 1e-8)
        yield x


PUBLISHED = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
}


def trajectory(name: str, dtype: type = np.float64) -> Iterator[np.ndarray]:
    theta: np.ndarray = np.array([START], dtype)
    optimizer = made(name, theta)
    while True:
        optimizer.step(theta, optimizer.scale * np.array([[slope(i, float(x)) for i, x in enumerate(theta[0])]], dtype))
        yield theta[0].copy()


def made(name: str, theta: np.ndarray) -> Optimizer:
    return OPTIMIZERS[name](np.array([[RATE]], theta.dtype), np.array([[MOMENTUM]], theta.dtype), theta)


def test_each_optimizer_offered_is_pinned_here() -> None:
    assert PUBLISHED.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_optimizer_follows_its_published_rule(name: str) -> None:
    published = [PUBLISHED[name](i, x) for i, x in enumerate(START)]

    for _, theta in zip(range(STEPS), trajectory(name), strict=False):
        assert theta == pytest.approx([next(path) for path in published], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_optimizer_keeps_the_type_of_the_parameters(name: str) -> None:
    assert next(trajectory(name, np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", PUBLISHED)
def test_those_called_linear_are_those_whose_step_grows_with_the_gradient(name: str) -> None:
    gradient, moved = np.array([[0.2, -0.4]]), []
    for factor in (1, 2):
        theta = np.zeros((1, 2))
        optimizer = made(name, theta)
        for _ in range(3):
            optimizer.step(theta, factor * optimizer.scale * gradient)
        moved.append(theta)

    assert np.allclose(moved[1], 2 * moved[0]) == (name in LINEAR)


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_optimizer_agrees_with_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    theta = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    theirs = {
        "sgd": lambda: torch.optim.SGD([theta], RATE),
        "momentum": lambda: torch.optim.SGD([theta], RATE, momentum=MOMENTUM),
        "nesterov": lambda: torch.optim.SGD([theta], RATE, momentum=MOMENTUM, nesterov=True),
        "adagrad": lambda: torch.optim.Adagrad([theta], RATE, eps=1e-8),
        "rmsprop": lambda: torch.optim.RMSprop([theta], RATE, alpha=0.99, eps=1e-8),
        "adam": lambda: torch.optim.Adam([theta], RATE, eps=1e-8),
    }[name]()

    for _, ours in zip(range(STEPS), trajectory(name), strict=False):
        theta.grad = torch.tensor([slope(i, x) for i, x in enumerate(theta.tolist())], dtype=torch.float64)
        theirs.step()
        assert ours == pytest.approx(theta.detach().numpy(), rel=1e-9, abs=1e-12)
