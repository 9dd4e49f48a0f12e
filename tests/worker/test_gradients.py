"""Every gradient against central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpo_worker.nn.arrays import Array
from hpo_worker.nn.first_layers import AffineInFunctionSpace, AffineOfPixels
from hpo_worker.nn.layers import Affine, BatchNormalization, Dropout, Layer, Relu, Sigmoid, Tanh
from hpo_worker.nn.losses import accuracy, cross_entropy, cross_entropy_gradient, softmax
from hpo_worker.nn.network import Architecture, Network
from hpo_worker.nn.optimizers import OPTIMIZERS
from hpo_worker.nn.parameters import Parameter
from hpo_worker.trainer import each_once

BATCH, INPUTS, OUTPUTS = 12, 7, 5
STEP = 1e-6


def central_differences(f: Callable[[], float], x: Array) -> Array:
    """df/dx, x changed in place."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + STEP
        above = f()
        x[index] = kept - STEP
        below = f()
        x[index] = kept
        gradient[index] = (above - below) / (2 * STEP)
    return gradient


def relative_error(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max(), 1e-3))


# By their formulas.
ACTIVATED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda z: np.where(z > 0, z, 0),
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
}


def parameter(*shape: int) -> Parameter:
    """Of one network: matrices (1, I, O), vectors (1, 1, O)."""
    shape = (1, *shape) if len(shape) > 1 else (1, 1, *shape)
    value = np.random.default_rng(sum(shape)).standard_normal(shape)
    return Parameter(value, np.full(shape, np.nan))


def affine() -> tuple[Layer, list[Parameter]]:
    W, b = parameter(INPUTS, OUTPUTS), parameter(OUTPUTS)
    return Affine(W, b, BATCH, np.empty(BATCH * INPUTS)), [W, b]


def affine_without_bias() -> tuple[Layer, list[Parameter]]:
    W = parameter(INPUTS, OUTPUTS)
    return Affine(W, None, BATCH, np.empty(BATCH * INPUTS)), [W]


def batch_normalization() -> tuple[Layer, list[Parameter]]:
    scale, shift = parameter(INPUTS), parameter(INPUTS)
    layer = BatchNormalization(scale, shift, BATCH)
    scale.value[:] = np.linspace(0.5, 2, INPUTS)
    return layer, [scale, shift]


LAYERS = {
    "affine": affine,
    "affine without bias": affine_without_bias,
    "batch normalization": batch_normalization,
    "relu": lambda: (Relu((1, BATCH, INPUTS), np.float64), []),
    "sigmoid": lambda: (Sigmoid((1, BATCH, INPUTS), np.float64), []),
    "tanh": lambda: (Tanh((1, BATCH, INPUTS), np.float64), []),
    "dropout": lambda: (Dropout([0.4], (1, BATCH, INPUTS), np.float64), []),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_alone_has_the_gradient_that_differences_measure(name: str) -> None:
    layer, parameters = LAYERS[name]()
    x = np.random.default_rng(1).standard_normal((1, BATCH, INPUTS))
    seen = layer.forward(x.copy(), [np.random.default_rng(0)])
    towards = np.random.default_rng(2).standard_normal(seen.shape)

    def projection() -> float:
        return float((layer.forward(x.copy(), [np.random.default_rng(0)]) * towards).sum())

    projection()
    measured_dx = central_differences(projection, x)
    measured = [central_differences(projection, each.value) for each in parameters]
    projection()
    dx = layer.backward(towards.copy())

    assert relative_error(dx, measured_dx) < 1e-7
    for each, expected in zip(parameters, measured, strict=True):
        assert relative_error(each.gradient, expected) < 1e-7


@pytest.mark.parametrize("kind", ["pixels", "function space"])
def test_a_first_layer_alone_has_the_gradient_that_differences_measure(kind: str) -> None:
    X = np.random.default_rng(0).standard_normal((20, INPUTS))
    W, b = parameter(INPUTS, OUTPUTS), parameter(OUTPUTS)
    rows = np.array([3, 3, 0, 19, 7])  # drawn with replacement: one image twice
    dy = np.random.default_rng(1).standard_normal((1, len(rows), OUTPUTS))
    dW = central_differences(lambda: float(((X[rows] @ W.value + b.value) * dy).sum()), W.value)
    layer: AffineOfPixels | AffineInFunctionSpace
    if kind == "pixels":
        layer, matrix, expected = AffineOfPixels(X, W, b, 20), W, dW
    else:
        matrix = Parameter(X @ W.value, np.full((1, 20, OUTPUTS), np.nan))
        # a step along dW moves U = X W by X dW
        layer, expected = AffineInFunctionSpace(X @ X.T, matrix, b, 20), X @ dW

    assert np.allclose(layer.forward(rows), X[rows] @ W.value + b.value)
    layer.backward(dy)

    assert relative_error(matrix.gradient, expected) < 1e-8
    assert relative_error(b.gradient, dy.sum(axis=1)) < 1e-12


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_whole_network_has_the_gradient_that_differences_measure(
    batch_norm: bool, dropout: float, activation: str, weight_decay: float
) -> None:
    rng = np.random.default_rng(5)
    X, labels = rng.random((30, INPUTS)), rng.integers(4, size=30)
    rows = rng.integers(30, size=BATCH)
    architecture = Architecture((6, 5), 4, activation, batch_norm, 0.8, dropout, weight_decay)
    network = Network([architecture], X, BATCH, [rng], np.float64)
    theta = network.parameters.values
    theta += 0.1 * rng.standard_normal(theta.shape)  # biases and β away from 0, γ from 1
    values = [view.value[0] for view in network.parameters.views]
    matrices = [value for value in values if len(value) > 1]

    def loss() -> float:
        """From the formulas, layer by layer, with the masks that the network draws."""
        masks = np.random.default_rng(0)
        x = X[rows]
        vectors = iter(value for value in values if len(value) == 1)
        for W in matrices[:-1]:
            x = x @ W
            if batch_norm:
                x = next(vectors) * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-6) + next(vectors)
            else:
                x = x + next(vectors)
            x = ACTIVATED[activation](x)
            if dropout:
                x = x * (masks.random(x.shape) > dropout)
        scores = x @ matrices[-1] + next(vectors)
        likelihood = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))[np.arange(BATCH), labels[rows]]
        return float(-np.log(likelihood).mean() + 0.5 * weight_decay * sum((W**2).sum() for W in matrices))

    measured = central_differences(loss, theta)
    gradient = network.gradient(rows, labels[rows], [np.random.default_rng(0)])

    assert relative_error(gradient, measured) < 1e-6


def test_relu_has_the_gradient_0_at_exactly_0() -> None:
    layer = Relu((1, 1, 3), np.float64)

    layer.forward(np.array([[[-1.0, 0.0, 2.0]]]), [np.random.default_rng(0)])

    assert layer.backward(np.ones((1, 1, 3))).tolist() == [[[0, 0, 1]]]


def test_batch_normalization_evaluates_with_the_first_batch_after_one_step_and_follows_by_a_tenth() -> None:
    layer, (gamma, beta) = batch_normalization()
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((1, BATCH, INPUTS)), 3 + rng.standard_normal((1, BATCH, INPUTS))
    x = rng.standard_normal((1, 4, INPUTS))

    def expected(mean: Array, variance: Array) -> Array:
        return gamma.value * (x - mean) / np.sqrt(variance + 1e-6) + beta.value

    layer.forward(first, [rng])
    assert np.allclose(layer.evaluate(x), expected(first.mean(axis=1), first.var(axis=1)))

    layer.forward(second, [rng])
    mean = 0.9 * first.mean(axis=1) + 0.1 * second.mean(axis=1)
    variance = 0.9 * first.var(axis=1) + 0.1 * second.var(axis=1)
    assert np.allclose(layer.evaluate(x), expected(mean, variance))


def test_dropout_drops_its_share_while_training_and_scales_by_the_share_kept_afterwards() -> None:
    layer = Dropout([0.15], (1, 200, 500), np.float32)
    x = np.ones((1, 200, 500), np.float32)

    trained = layer.forward(x, [np.random.default_rng(0)]).copy()

    assert set(np.unique(trained)) == {0.0, 1.0}
    assert trained.mean() == pytest.approx(0.85, abs=0.005)
    assert np.allclose(layer.evaluate(x), 0.85)


def test_softmax_and_cross_entropy_agree_with_their_definitions() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((1, 9, 4)), rng.integers(4, size=9)
    weights = rng.random((1, 9, 1))

    expected = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)

    assert np.allclose(softmax(scores), expected)
    assert np.allclose(cross_entropy(scores, labels), -np.log(expected[:, np.arange(9), labels]))
    measured = central_differences(lambda: float(cross_entropy(scores, labels)[0] @ weights[0, :, 0]), scores)
    assert relative_error(cross_entropy_gradient(scores, labels, weights), measured) < 1e-7


def test_scores_of_any_finite_size_have_a_finite_loss() -> None:
    scores = np.array([[[3e38, -3e38], [-3e38, 3e38], [0, 1000]]], np.float32)
    labels = np.array([1, 0, 0])

    with np.errstate(over="ignore"):
        assert np.isfinite(cross_entropy(scores, labels)).all()
    assert np.isfinite(softmax(np.array([[[1000.0, -1000.0]]]))).all()
    assert accuracy(scores[0], labels) == 0


def test_losses_in_single_precision_are_as_exact_as_their_scores() -> None:
    scores = (5 * np.random.default_rng(0).standard_normal((1, 200, 10))).astype(np.float32)
    labels = np.arange(200) % 10

    assert np.allclose(cross_entropy(scores, labels), cross_entropy(scores.astype(np.float64), labels), atol=1e-6)


def test_an_image_that_counts_twice_is_one_that_was_drawn_twice() -> None:
    rng = np.random.default_rng(3)
    X, labels = rng.random((30, INPUTS)), rng.integers(4, size=30)
    network = Network([Architecture((6, 5), 4)], X, 30, [rng], np.float64)
    batch = rng.integers(10, size=20)
    rows, shares = each_once(batch, np.float64)

    plain = network.gradient(batch, labels[batch], []).copy()
    once = network.gradient(rows, labels[rows], [], shares=shares)

    assert len(rows) < 20
    assert np.abs(plain - once).max() < 1e-15


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_is_the_optimizers_own_against_the_whole_loss(optimizer: str) -> None:
    """Given weight decay, when a network steps, then as if the gradient of ½ λ Σ W² had been added and η come last."""
    rng = np.random.default_rng(3)
    X, labels = rng.random((30, INPUTS)), rng.integers(4, size=30)
    network = Network([Architecture((6, 5), 4, weight_decay=0.3)], X, 30, [rng], np.float64)
    theta, rate, momentum = network.parameters.values, np.array([[0.05]]), np.array([[0.8]])
    expected = theta.copy()
    stepping, by_hand = (OPTIMIZERS[optimizer](rate, momentum, theta) for _ in range(2))
    for _ in range(3):
        rows = rng.integers(30, size=8)
        gradient = network.gradient(rows, labels[rows], [])
        by_hand.step(expected, gradient * by_hand.scale)
        network.step(stepping, rows, labels[rows], [])

        assert np.abs(theta - expected).max() < 1e-14
