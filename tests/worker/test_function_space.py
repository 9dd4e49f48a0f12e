"""A first layer in function space is the plain one, trained with other numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpo_worker.nn.first_layers import function_space_pays
from hpo_worker.nn.network import Architecture, Network
from hpo_worker.nn.optimizers import LINEAR, OPTIMIZERS

IMAGES, PIXELS, TRAINING, BATCH = 60, 40, 48, 16


def trained(optimizer: str, architecture: Architecture, in_function_space: bool, steps: int) -> np.ndarray:
    """Return the scores of all images after each step."""
    data = np.random.default_rng(0)
    X, labels = data.random((IMAGES, PIXELS)), data.integers(10, size=IMAGES)
    gram = X[:TRAINING] @ X.T if in_function_space else None
    network = Network([architecture], X, IMAGES, [np.random.default_rng(1)], np.float64, gram)
    rate, momentum = np.array([[0.05]]), np.array([[0.9]])
    stepping = OPTIMIZERS[optimizer](rate, momentum, network.parameters.values)
    masks, scores = [np.random.default_rng(2)], []
    for _ in range(steps):
        rows = data.integers(TRAINING, size=BATCH)
        network.step(stepping, rows, labels[rows], masks)
        scores.append(network.scores(slice(0, IMAGES)).copy())
    return np.array(scores)


@pytest.mark.parametrize(
    ("optimizer", "batch_norm", "dropout", "weight_decay"),
    list(itertools.product(sorted(LINEAR), [False, True], [0.0, 0.2], [0.0, 0.01])),
)
def test_after_60_steps_function_space_has_the_scores_of_pixels(
    optimizer: str, batch_norm: bool, dropout: float, weight_decay: float
) -> None:
    architecture = Architecture((20, 20), 10, "relu", batch_norm, "he", dropout, weight_decay)

    plain = trained(optimizer, architecture, in_function_space=False, steps=60)
    other = trained(optimizer, architecture, in_function_space=True, steps=60)

    assert np.abs(plain[-1] - plain[0]).max() > 0.1
    assert np.abs(plain - other).max() < 1e-12


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS.keys() - LINEAR))
def test_function_space_is_another_training_for_the_optimizers_it_is_not_used_with(optimizer: str) -> None:
    architecture = Architecture((20,), 10)

    plain = trained(optimizer, architecture, in_function_space=False, steps=5)
    other = trained(optimizer, architecture, in_function_space=True, steps=5)

    assert np.abs(plain - other).max() > 1e-3


def test_function_space_pays_for_a_few_hundred_images_and_not_for_tens_of_thousands() -> None:
    assert function_space_pays(images=500, pixels=784, steps=4, batch_size=100)
    assert not function_space_pays(images=60_000, pixels=784, steps=480, batch_size=100)


def test_a_network_in_function_space_refuses_images_it_does_not_know() -> None:
    X = np.random.default_rng(0).random((IMAGES, PIXELS))
    network = Network([Architecture((5,), 10)], X, IMAGES, [np.random.default_rng(1)], np.float64, X @ X.T)

    with pytest.raises(TypeError, match="its own images only"):
        network.over(X)
