"""Trains one trial, an epoch at a time, and opens the sealed test set once at the end of a study."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hpo_service.domain.neural_network import NetworkConfiguration
from worker.datasets import Dataset
from worker.nn.arrays import Array, Labels
from worker.nn.losses import accuracy, cross_entropy, softmax
from worker.nn.network import Architecture, Network
from worker.nn.optimizers import Momentum, Optimizer, Sgd

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
    """The images of a study, those that train first, then those that validate."""

    images: Array
    labels: Labels
    training: int


def train(
    configuration: NetworkConfiguration, *, seed: int, study_seed: int, dataset: Dataset
) -> Iterator[EpochReport]:
    """Yield a report after each epoch; the last one's value is the trial's result. Raise Diverged.

    `seed` is the trial's own (initial weights, dropout masks), `study_seed` that of the split and the
    mini-batches, which all trials of a study share.
    """
    split = _split(dataset, study_seed, *_sizes(configuration, dataset))
    network = _network(configuration, split, seed, dataset)
    for epoch, _ in enumerate(_epochs(configuration, network, split, seed, study_seed), start=1):
        training_scores = _scores(network, 0, split.training)
        validation_scores = _scores(network, split.training, len(split.labels))
        training_labels, validation_labels = split.labels[: split.training], split.labels[split.training :]
        metrics = {
            "train_accuracy": accuracy(training_scores, training_labels),
            "train_loss": cross_entropy(training_scores, training_labels),
            "validation_loss": cross_entropy(validation_scores, validation_labels),
        }
        if not all(math.isfinite(value) for value in metrics.values()):
            raise Diverged(f"the loss is no longer finite after epoch {epoch}")
        yield EpochReport(epoch, accuracy(validation_scores, validation_labels), metrics)


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
    The test images are touched nowhere else.
    """
    split = _split(dataset, study_seed, *_sizes(configuration, dataset))
    everything = Split(split.images, split.labels, len(split.labels))
    test = Split(np.concatenate([split.images, dataset.x_test]), dataset.t_test, len(split.labels))
    members: list[dict[str, float | int]] = []
    validation: list[Array] = []
    tested: list[Array] = []
    for member in range(ensemble):
        member_seed = _member_seed(seed, member)
        network = _network(configuration, split, member_seed, dataset)
        for _ in _epochs(configuration, network, split, member_seed, study_seed):
            between_epochs()
        validation.append(softmax(_scores(network, split.training, len(split.labels))))
        network = _network(configuration, test, member_seed, dataset)
        for _ in _epochs(configuration, network, everything, member_seed, study_seed):
            between_epochs()
        tested.append(softmax(_scores(network, len(split.labels), len(test.images))))
        members.append(
            {
                "seed": member_seed,
                "test_accuracy": accuracy(tested[-1], dataset.t_test),
                "validation_accuracy": accuracy(validation[-1], split.labels[split.training :]),
            }
        )
    return TestResult(
        accuracy(np.mean(tested, axis=0), dataset.t_test),
        accuracy(np.mean(validation, axis=0), split.labels[split.training :]),
        members,
    )


def _sizes(configuration: NetworkConfiguration, dataset: Dataset) -> tuple[int, int]:
    return configuration.split_sizes(len(dataset.x_train))


@functools.lru_cache(maxsize=2)
def _split(dataset: Dataset, study_seed: int, training: int, validation: int) -> Split:
    """Shuffle the training images by the study's seed, take as many as are used, the first for training."""
    order = _stream(study_seed, SPLIT).permutation(len(dataset.x_train))[: training + validation]
    return Split(dataset.x_train[order], dataset.t_train[order], training)


def _network(configuration: NetworkConfiguration, split: Split, seed: int, dataset: Dataset) -> Network:
    architecture = Architecture(
        inputs=split.images.shape[1],
        hidden_sizes=configuration.hidden_sizes,
        classes=dataset.classes,
        weight_init=configuration.weight_init,
        weight_decay=configuration.weight_decay,
    )
    rows = max(configuration.batch_size, min(EVALUATED_AT_ONCE, len(split.images)))
    return Network(architecture, split.images, rows, _stream(seed, WEIGHTS), np.float32)


def _epochs(
    configuration: NetworkConfiguration, network: Network, split: Split, seed: int, study_seed: int
) -> Iterator[None]:
    """Train, stopping after each epoch."""
    optimizer = _optimizer(configuration, network.parameters.values)
    batches, masks = _stream(study_seed, BATCHES), _stream(seed, DROPOUT)
    steps = max(1, split.training // configuration.batch_size)
    for _ in range(configuration.epochs):
        with np.errstate(all="ignore"):  # a diverging loss is looked for where it is evaluated
            for rows in batches.integers(split.training, size=(steps, configuration.batch_size)):
                gradient = network.gradient(rows, split.labels[rows], masks)
                optimizer.step(network.parameters.values, gradient)
        yield


def _optimizer(configuration: NetworkConfiguration, like: Array) -> Optimizer:
    if configuration.optimizer == "momentum":
        return Momentum(configuration.learning_rate, configuration.momentum, like)
    return Sgd(configuration.learning_rate)


def _scores(network: Network, first: int, end: int) -> Array:
    """Return the scores of the images from `first` to before `end`, some at a time, so that they stay in the cache."""
    with np.errstate(all="ignore"):
        return np.concatenate(
            [
                network.scores(slice(start, min(start + EVALUATED_AT_ONCE, end))).copy()
                for start in range(first, end, EVALUATED_AT_ONCE)
            ]
        )


def _member_seed(seed: int, member: int) -> int:
    """The seed of a network of the ensemble; the first has the trial's own."""
    return seed if member == 0 else int(_stream(seed, MEMBERS, member).integers(2**32))


def _stream(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(entropy)
