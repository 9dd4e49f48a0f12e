"""Trains trials, alone or side by side, an epoch at a time, and opens the sealed test set once at a study's end."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hpo_service.domain.neural_network import NetworkConfiguration
from hpo_worker.datasets import Dataset
from hpo_worker.nn.arrays import Array, Indices, Labels
from hpo_worker.nn.first_layers import function_space_pays
from hpo_worker.nn.layers import Streams
from hpo_worker.nn.losses import accuracy, cross_entropy, hits, softmax
from hpo_worker.nn.network import Architecture, Network
from hpo_worker.nn.optimizers import LINEAR, OPTIMIZERS, Optimizer, only

# Streams of random numbers: those of the study are shared by its trials, the others are the trial's own.
SPLIT, BATCHES, WEIGHTS, DROPOUT, MEMBERS = range(5)

EVALUATED_AT_ONCE = 500
MAX_GROUP_SIZE = 4  # networks side by side: more of them no longer stay in the cache

# The settings in which members of a group may differ; all others decide about arrays, batches or the kind of step.
PER_TRIAL_SETTINGS = frozenset({"epochs", "weight_init", "dropout", "momentum", "learning_rate", "weight_decay"})


class Diverged(Exception):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch reached; `step` counts from 1, `value` is the validation accuracy."""

    step: int
    value: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class TestAccuracies:
    """What the sealed test gave: accuracies of the averaged probabilities, and each member's own.

    layers: of the networks that were tested, W (K, I, O) and b (K, 1, O) each.
    """

    __test__ = False  # not a test of pytest's

    test_accuracy: float
    validation_accuracy: float
    members: list[dict[str, float | int]]
    layers: list[tuple[Array, Array]] = field(compare=False)


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


@dataclass(frozen=True)
class Member:
    """One of the trials that train side by side: `seed` is its own (initial weights, dropout masks)."""

    configuration: NetworkConfiguration
    seed: int


class TrialGroup:
    """Trials of one study and one shape that train side by side, each with its own weights, rates and end.

    They share what all trials of a study share: the split and the mini-batches, which follow from `study_seed`. What a
    trial reaches does not depend on its group, to the last bit.
    """

    def __init__(self, members: Sequence[Member], *, study_seed: int, dataset: Dataset) -> None:
        first = members[0].configuration
        self.members = list(members)
        self.epoch = 0
        self._split = _split_of_study(first, dataset, study_seed)
        self._batches = mini_batches(study_seed, self._split.training, first.batch_size)
        self._networks = _networks(members, self._split, in_function_space=_pays(first, self._split))
        self._optimizer = _optimizer(members, self._networks)
        self._masks = [_stream(member.seed, DROPOUT) for member in members]
        self._once = _each_once_pays(first, self._split.training)

    def train_epoch(self) -> list[EpochReport | None]:
        """Train an epoch; return what each member has reached, None where the loss is no longer finite."""
        self.epoch += 1
        batches, labels = next(self._batches), self._split.labels
        _train_epoch(self._networks, self._optimizer, batches, labels, self._masks, self._once)
        return _reports(self.epoch, _scores(self._networks, 0, len(self._split.labels)), self._split)

    def retain(self, staying: Sequence[int]) -> None:
        """Keep only the members at these indices; their results do not change by it."""
        if len(staying) == len(self.members):
            return
        self.members = [self.members[place] for place in staying]
        if not staying:
            return
        self._masks = [self._masks[place] for place in staying]
        self._networks = self._networks.only(np.array(staying, np.int64))
        self._optimizer = only(self._optimizer, np.array(staying, np.int64))


def can_train_together(one: NetworkConfiguration, other: NetworkConfiguration) -> bool:
    """Whether two trials of a study may be members of one group: the same arrays, batches and kind of step."""
    return _shape(one) == _shape(other)


def _shape(configuration: NetworkConfiguration) -> dict[str, object]:
    shared = {name: value for name, value in vars(configuration).items() if name not in PER_TRIAL_SETTINGS}
    return shared | {"drops": configuration.dropout > 0}


def train(
    configuration: NetworkConfiguration, *, seed: int, study_seed: int, dataset: Dataset
) -> Iterator[EpochReport]:
    """Yield a report after each epoch; the last one's value is the trial's result. Raise Diverged."""
    alone = TrialGroup([Member(configuration, seed)], study_seed=study_seed, dataset=dataset)
    for _ in range(configuration.epochs):
        (report,) = alone.train_epoch()
        if report is None:
            raise Diverged("the loss is no longer finite")
        yield report


def evaluate_on_test_set(
    configuration: NetworkConfiguration,
    *,
    seed: int,
    study_seed: int,
    ensemble: int,
    dataset: Dataset,
    between_epochs: Callable[[], None] = lambda: None,
) -> TestAccuracies:
    """Train `ensemble` networks on the training and validation images together, and test their average once.

    The validation accuracy is that of networks of the same seeds, trained without the validation images.
    The test images are touched nowhere else. Raise Diverged.
    """
    split = _split_of_study(configuration, dataset, study_seed)
    everything = replace(split, training=len(split.labels))
    seeds = _member_seeds(seed, ensemble)
    validated: list[Array] = []
    tested: list[Array] = []
    layers: list[list[tuple[Array, Array]]] = []
    for first in range(0, ensemble, MAX_GROUP_SIZE):
        members = [Member(configuration, each) for each in seeds[first : first + MAX_GROUP_SIZE]]
        networks = _networks(members, split, in_function_space=_pays(configuration, split))
        _train_to_end(networks, members, split, study_seed, between_epochs)
        validated.extend(_probabilities(networks, split.training, len(split.labels)))
        networks = _networks(members, everything, in_function_space=False)
        _train_to_end(networks, members, everything, study_seed, between_epochs)
        tested.extend(_probabilities(networks.over(dataset.x_test), 0, len(dataset.t_test)))
        layers.append(networks.affine_layers())
    return TestAccuracies(
        accuracy(np.mean(tested, axis=0), dataset.t_test),
        accuracy(np.mean(validated, axis=0), split.validation_labels),
        [
            {
                "seed": each,
                "test_accuracy": accuracy(on_test, dataset.t_test),
                "validation_accuracy": accuracy(on_validation, split.validation_labels),
            }
            for each, on_test, on_validation in zip(seeds, tested, validated, strict=True)
        ],
        [
            (np.concatenate([W for W, _ in each]), np.concatenate([b for _, b in each]))
            for each in zip(*layers, strict=True)
        ],
    )


def _split_of_study(configuration: NetworkConfiguration, dataset: Dataset, study_seed: int) -> Split:
    training, validation = configuration.split_sizes(len(dataset.x_train))
    return _split(dataset, study_seed, training, validation, configuration.validation_samples is not None)


# The next trial of a worker is mostly one of the same study.
@functools.lru_cache(maxsize=2)
def _split(dataset: Dataset, study_seed: int, training: int, validation: int, of_left_over: bool) -> Split:
    """Shuffle the first images, as many as are used, and split them; of_left_over: validate with some of the others."""
    rng = _stream(study_seed, SPLIT)
    samples = training if of_left_over else training + validation
    order = rng.permutation(samples)
    if of_left_over:
        left_over = samples + rng.permutation(len(dataset.x_train) - samples)
        order = np.concatenate([order, left_over[:validation]])
    return Split(dataset.x_train[order], dataset.t_train[order], training, dataset.classes)


def _networks(members: Sequence[Member], split: Split, in_function_space: bool) -> Network:
    architectures = [
        Architecture(
            c.hidden_sizes, split.classes, c.activation, c.batch_norm, c.weight_init, c.dropout, c.weight_decay
        )
        for c in (member.configuration for member in members)
    ]
    rows = max(members[0].configuration.batch_size, EVALUATED_AT_ONCE)
    gram = split.gram if in_function_space else None
    return Network(architectures, split.images, rows, [_stream(member.seed, WEIGHTS) for member in members], gram=gram)


def _optimizer(members: Sequence[Member], networks: Network) -> Optimizer:
    theta = networks.parameters.values
    rates, momenta = (
        np.array([[getattr(member.configuration, name)] for member in members], theta.dtype)
        for name in ("learning_rate", "momentum")
    )
    return OPTIMIZERS[members[0].configuration.optimizer](rates, momenta, theta)


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


def _train_epoch(
    networks: Network, optimizer: Optimizer, batches: Iterable[Indices], labels: Labels, masks: Streams, once: bool
) -> None:
    """One step for each mini-batch; `once`: see each_once."""
    dtype = networks.parameters.values.dtype
    # an overflow is found in the scores of the next evaluation
    with np.errstate(all="ignore"):
        for batch in batches:
            rows, shares = each_once(batch, dtype) if once else (batch, None)
            networks.step(optimizer, rows, labels[rows], masks, shares)


def each_once(batch: Indices, dtype: npt.DTypeLike) -> tuple[Indices, Array]:
    """Return the distinct images of a mini-batch, and their weights (B, 1): the count of each over the batch size."""
    counts = np.bincount(batch)
    rows = np.flatnonzero(counts)
    return rows, (counts[rows, np.newaxis] / len(batch)).astype(dtype)


def _each_once_pays(configuration: NetworkConfiguration, images: int) -> bool:
    """Whether at least one in twenty images of a mini-batch is a repeat, so that weighting distinct ones is faster.

    Not with batch normalization or dropout: there, a repeated image is not the same as one of double weight.
    """
    return not (configuration.batch_norm or configuration.dropout) and images <= 10 * configuration.batch_size


def _train_to_end(
    networks: Network, members: Sequence[Member], split: Split, study_seed: int, between_epochs: Callable[[], None]
) -> None:
    configuration = members[0].configuration
    optimizer = _optimizer(members, networks)
    masks = [_stream(member.seed, DROPOUT) for member in members]
    once = _each_once_pays(configuration, split.training)
    epochs = mini_batches(study_seed, split.training, configuration.batch_size)
    for batches in itertools.islice(epochs, configuration.epochs):
        _train_epoch(networks, optimizer, batches, split.labels, masks, once)
        between_epochs()


def _reports(epoch: int, scores: Array, split: Split) -> list[EpochReport | None]:
    """Return what each network has reached, None where a score is not finite."""
    finite = [bool(np.isfinite(each).all()) for each in scores]
    training = slice(split.training), split.labels[: split.training]
    validation = slice(split.training, None), split.validation_labels
    with np.errstate(all="ignore"):
        losses = cross_entropy(scores, split.labels)
    found = [
        [values.tolist() for values in (hits(scores[:, rows], labels) / len(labels), losses[:, rows].mean(axis=1))]
        for rows, labels in (training, validation)
    ]
    return [
        EpochReport(epoch, value, {"train_accuracy": train_accuracy, "train_loss": train_loss, "validation_loss": loss})
        if is_finite
        else None
        for is_finite, train_accuracy, train_loss, value, loss in zip(finite, *found[0], *found[1], strict=True)
    ]


def _probabilities(networks: Network, first: int, end: int) -> Array:
    """Return each network's probabilities (K, N, C) for these images; raise Diverged."""
    scores = _scores(networks, first, end)
    if not np.isfinite(scores).all():
        raise Diverged("the loss is no longer finite")
    return softmax(scores)


def _scores(networks: Network, first: int, end: int) -> Array:
    """Return the scores (K, N, C) of the images from `first` to before `end`."""
    with np.errstate(all="ignore"):
        # in parts that stay in the cache
        starts = range(first, end, EVALUATED_AT_ONCE)
        return np.concatenate(
            [networks.scores(slice(s, min(s + EVALUATED_AT_ONCE, end))).copy() for s in starts], axis=1
        )


def _member_seeds(seed: int, ensemble: int) -> list[int]:
    """The seeds of an ensemble; the first is the trial's own."""
    return [seed, *(int(_stream(seed, MEMBERS, member).integers(2**32)) for member in range(1, ensemble))]


def _stream(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(entropy)
