"""Trains one trial, an epoch at a time, and opens the sealed test set once at the end of a study."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hpo_service.domain.neural_network import NetworkConfiguration
from worker.datasets import Dataset
from worker.nn.arrays import Array, Indices, Labels
from worker.nn.first_layers import function_space_pays
from worker.nn.losses import accuracy, cross_entropy, softmax
from worker.nn.network import Architecture, Network
from worker.nn.optimizers import LINEAR, OPTIMIZERS

# Streams of random numbers: those of the study are shared by its trials, the others are the trial's own.
SPLIT, BATCHES, WEIGHTS, DROPOUT, MEMBERS = range(5)

EVALUATED_AT_ONCE = 500


class Diverged(Exception):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch reached; `step` counts from 1, `value` is the validation accuracy."""

    step: int
    value: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class TestResult:
    """What the sealed test gave: accuracies of the averaged probabilities, and each member's own."""

    __test__ = False  # not a test of pytest's

    test_accuracy: float
    validation_accuracy: float
    members: list[dict[str, float | int]]


@dataclass(frozen=True, eq=False)
class Split:
    """The images a study uses, those that train first, then those that validate."""

    images: Array
    labels: Labels
    training: int
    classes: int

    @functools.cached_property
    def gram(self) -> Array:
        """X_train Xᵀ, computed once for all trials of a study."""
        return self.images[: self.training] @ self.images.T

    @property
    def validation_labels(self) -> Labels:
        return self.labels[self.training :]

    def all_for_training(self) -> Split:
        return Split(self.images, self.labels, len(self.labels), self.classes)


def train(
    configuration: NetworkConfiguration, *, seed: int, study_seed: int, dataset: Dataset
) -> Iterator[EpochReport]:
    """Yield a report after each epoch; the last one's value is the trial's result. Raise Diverged.

    `seed` is the trial's own (initial weights, dropout masks), `study_seed` that of the split and the
    mini-batches, which all trials of a study share.
    """
    split = _split_of_study(configuration, dataset, study_seed)
    network = _network(configuration, split, seed, in_function_space=_pays(configuration, split))
    for epoch, _ in enumerate(_epochs(configuration, network, split, seed, study_seed), start=1):
        yield _report(epoch, _scores(network, 0, len(split.labels)), split)


def evaluate_on_test_set(
    configuration: NetworkConfiguration,
    *,
    seed: int,
    study_seed: int,
    ensemble: int,
    dataset: Dataset,
    between_epochs: Callable[[], None] = lambda: None,
) -> TestResult:
    """Train `ensemble` networks on the training and validation images together, and test their average once.

    The validation accuracy is that of networks of the same seeds, trained without the validation images.
    The test images are touched nowhere else. Raise Diverged.
    """
    split = _split_of_study(configuration, dataset, study_seed)
    members: list[dict[str, float | int]] = []
    validated: list[Array] = []
    tested: list[Array] = []
    for seed_of_member in _member_seeds(seed, ensemble):
        network = _network(configuration, split, seed_of_member, in_function_space=_pays(configuration, split))
        for _ in _epochs(configuration, network, split, seed_of_member, study_seed):
            between_epochs()
        validated.append(_probabilities(network, split.training, len(split.labels)))
        everything = split.all_for_training()
        network = _network(configuration, everything, seed_of_member, in_function_space=False)
        for _ in _epochs(configuration, network, everything, seed_of_member, study_seed):
            between_epochs()
        tested.append(_probabilities(network.over(dataset.x_test), 0, len(dataset.t_test)))
        members.append(
            {
                "seed": seed_of_member,
                "test_accuracy": accuracy(tested[-1], dataset.t_test),
                "validation_accuracy": accuracy(validated[-1], split.validation_labels),
            }
        )
    return TestResult(
        accuracy(np.mean(tested, axis=0), dataset.t_test),
        accuracy(np.mean(validated, axis=0), split.validation_labels),
        members,
    )


def _split_of_study(configuration: NetworkConfiguration, dataset: Dataset, study_seed: int) -> Split:
    training, validation = configuration.split_sizes(len(dataset.x_train))
    return _split(dataset, study_seed, training, validation, configuration.validation_samples is not None)


# The next trial of a worker is mostly one of the same study.
@functools.lru_cache(maxsize=2)
def _split(dataset: Dataset, study_seed: int, training: int, validation: int, of_left_over: bool) -> Split:
    """Shuffle the first images, as many as are used, and split them; or validate with some that were left over."""
    rng = _stream(study_seed, SPLIT)
    samples = training if of_left_over else training + validation
    order = rng.permutation(samples)
    if of_left_over:
        left_over = samples + rng.permutation(len(dataset.x_train) - samples)
        order = np.concatenate([order, left_over[:validation]])
    return Split(dataset.x_train[order], dataset.t_train[order], training, dataset.classes)


def _network(configuration: NetworkConfiguration, split: Split, seed: int, in_function_space: bool) -> Network:
    architecture = Architecture(
        configuration.hidden_sizes,
        split.classes,
        configuration.activation,
        configuration.weight_init,
        configuration.batch_norm,
        configuration.dropout,
        configuration.weight_decay,
    )
    rows = max(configuration.batch_size, EVALUATED_AT_ONCE)
    gram = split.gram if in_function_space else None
    return Network(architecture, split.images, rows, _stream(seed, WEIGHTS), gram=gram)


def _pays(configuration: NetworkConfiguration, split: Split) -> bool:
    """Whether the first layer is trained faster in function space."""
    return configuration.optimizer in LINEAR and function_space_pays(
        len(split.labels),
        split.images.shape[1],
        _steps(split.training, configuration.batch_size),
        configuration.batch_size,
    )


def mini_batches(study_seed: int, images: int, batch_size: int) -> Iterator[Indices]:
    """Yield for each epoch the rows of its mini-batches (steps, B), drawn with replacement from so many images."""
    rng = _stream(study_seed, BATCHES)
    while True:
        yield rng.integers(images, size=(_steps(images, batch_size), batch_size))


def _steps(images: int, batch_size: int) -> int:
    return max(1, images // batch_size)


def _epochs(
    configuration: NetworkConfiguration, network: Network, split: Split, seed: int, study_seed: int
) -> Iterator[None]:
    """Train, and stop after each epoch."""
    theta = network.parameters.values
    optimizer = OPTIMIZERS[configuration.optimizer](configuration.learning_rate, configuration.momentum, theta)
    masks = _stream(seed, DROPOUT)
    epochs = mini_batches(study_seed, split.training, configuration.batch_size)
    for batches in itertools.islice(epochs, configuration.epochs):
        # what overflows is looked for in the scores of an evaluation
        with np.errstate(all="ignore"):
            for rows in batches:
                optimizer.step(theta, network.gradient(rows, split.labels[rows], masks))
        yield


def _report(epoch: int, scores: Array, split: Split) -> EpochReport:
    training, validation = scores[: split.training], scores[split.training :]
    return EpochReport(
        epoch,
        accuracy(validation, split.validation_labels),
        {
            "train_accuracy": accuracy(training, split.labels[: split.training]),
            "train_loss": cross_entropy(training, split.labels[: split.training]),
            "validation_loss": cross_entropy(validation, split.validation_labels),
        },
    )


def _probabilities(network: Network, first: int, end: int) -> Array:
    return softmax(_scores(network, first, end))


def _scores(network: Network, first: int, end: int) -> Array:
    """Return the scores (N, C) of the images from `first` to before `end`; raise Diverged if one is not finite."""
    with np.errstate(all="ignore"):
        # some at a time, so that they stay in the cache
        starts = range(first, end, EVALUATED_AT_ONCE)
        scores = np.concatenate([network.scores(slice(s, min(s + EVALUATED_AT_ONCE, end))).copy() for s in starts])
    if not np.isfinite(scores).all():
        raise Diverged("the loss is no longer finite")
    return scores


def _member_seeds(seed: int, ensemble: int) -> list[int]:
    """The seeds of an ensemble; the first is the trial's own."""
    return [seed, *(int(_stream(seed, MEMBERS, member).integers(2**32)) for member in range(1, ensemble))]


def _stream(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(entropy)
