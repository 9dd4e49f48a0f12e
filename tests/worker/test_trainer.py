"""The training of a trial, and the sealed test set."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import hpo_worker.trainer
from hpo_service.domain.errors import Invalid
from hpo_service.domain.neural_network import ACTIVATIONS, OPTIMIZERS, configuration
from hpo_worker.datasets import Dataset, load
from hpo_worker.trainer import Diverged, EpochReport, evaluate_on_test_set, mini_batches, train

SMALL = {"samples": 250, "epochs": 3, "batch_size": 50, "hidden_layers": 2, "hidden_units": 30, "learning_rate": 0.05}


def small_dataset(training: int = 400, test: int = 100) -> Dataset:
    """The first images of MNIST, as a dataset of their own."""
    mnist = load("mnist")
    return dataclasses.replace(
        mnist,
        x_train=mnist.x_train[:training],
        t_train=mnist.t_train[:training],
        x_test=mnist.x_test[:test],
        t_test=mnist.t_test[:test],
    )


def reports(
    settings: Mapping[str, object] = {}, seed: int = 7, study_seed: int = 1, dataset: Dataset | None = None
) -> list[EpochReport]:
    given = load("mnist") if dataset is None else dataset
    return list(train(configuration({**SMALL, **settings}, {}), seed=seed, study_seed=study_seed, dataset=given))


SETTINGS: list[dict[str, object]] = [
    *(dict[str, object](optimizer=name, learning_rate=0.01) for name in OPTIMIZERS),
    *(dict[str, object](activation=name, weight_init="xavier") for name in ACTIVATIONS),
    {"batch_norm": True},
    {"dropout": 0.2},
    {"weight_decay": 0.01},
    {"weight_init": 0.05},
    {"hidden_layers": 1},
    {"validation_samples": 77},
    {"samples": 5, "batch_size": 7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_each_epoch_is_reported_and_the_same_trial_gives_the_same_bits(settings: dict[str, object]) -> None:
    first = reports(settings)

    assert [report.step for report in first] == [1, 2, 3]
    assert all(0 <= report.value <= 1 for report in first)
    assert first[-1].metrics.keys() == {"train_accuracy", "train_loss", "validation_loss"}
    assert first == reports(settings)


@pytest.mark.slow
def test_another_process_gives_the_same_bits() -> None:
    script = (
        "from tests.worker.test_trainer import reports\n"
        "print([(r.value, r.metrics) for r in reports({'dropout': 0.1})])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": "."},
    ).stdout

    assert printed.strip() == str([(r.value, r.metrics) for r in reports({"dropout": 0.1})])


def test_what_was_trained_in_between_changes_nothing() -> None:
    alone = reports()
    generator = train(configuration(SMALL, {}), seed=7, study_seed=1, dataset=load("mnist"))

    interleaved = []
    for report in generator:
        interleaved.append(report)
        reports({"hidden_units": 31}, seed=8)
        reports({"samples": 300}, study_seed=2)

    assert interleaved == alone


def test_the_seed_of_the_trial_and_that_of_the_study_both_matter() -> None:
    assert reports(seed=7) != reports(seed=8)
    assert reports(study_seed=1) != reports(study_seed=2)


def test_dropout_masks_come_from_the_seed_of_the_trial() -> None:
    assert reports({"dropout": 0.3}) != reports()


def test_mini_batches_follow_from_the_study_alone_and_are_drawn_with_replacement() -> None:
    """Given one study, when its trials train, then each sees the same images at the same step."""
    first, again, other = (list(itertools.islice(mini_batches(study_seed, 200, 50), 3)) for study_seed in (1, 1, 2))

    assert [epoch.shape for epoch in first] == [(4, 50)] * 3
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert any(len(set(batch)) < 50 for batch in first[0].tolist())
    assert {row for epoch in first for row in epoch.ravel().tolist()} <= set(range(200))


def test_steps_of_an_epoch_are_whole_and_evaluation_follows_each_epoch() -> None:
    """The book's float of an epoch loses records when the batch does not divide the samples."""
    assert [report.step for report in reports({"samples": 99, "batch_size": 70, "epochs": 5})] == [1, 2, 3, 4, 5]


def test_training_learns() -> None:
    last = reports({"samples": 1000, "epochs": 15, "learning_rate": 0.1})[-1]

    assert last.value > 0.75
    assert last.metrics["train_accuracy"] > 0.95
    assert last.metrics["train_loss"] < last.metrics["validation_loss"]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "rmsprop"])
def test_a_loss_that_is_no_longer_finite_ends_the_trial(optimizer: str) -> None:
    with pytest.raises(Diverged, match="no longer finite"):
        reports({"learning_rate": 1e30, "optimizer": optimizer})


def test_more_images_than_the_dataset_has_are_refused_with_the_numbers() -> None:
    with pytest.raises(Invalid, match="401 images, but the dataset has 400"):
        reports({"samples": 401, "dataset": "own"}, dataset=small_dataset())
    with pytest.raises(Invalid, match=r"300 \+ 101 images, but the dataset has 400"):
        reports({"samples": 300, "validation_samples": 101, "dataset": "own"}, dataset=small_dataset())


def test_all_samples_are_those_that_validation_leaves() -> None:
    split = configuration({"validation_samples": 100}, {}).split_sizes(400)

    assert split == (300, 100)
    assert reports({"samples": None, "validation_samples": 100, "dataset": "own"}, dataset=small_dataset())


def test_the_first_images_are_used_and_others_validate_only_when_that_is_asked() -> None:
    """Given a dataset whose images after the 200th are spoiled, then only validating with those left over sees it."""
    spoiled = small_dataset().x_train.copy()
    spoiled[200:] = np.nan
    dataset = dataclasses.replace(small_dataset(), x_train=spoiled)

    assert reports({"samples": 200, "dataset": "own"}, dataset=dataset)
    with pytest.raises(Diverged):
        reports({"samples": 200, "validation_samples": 50, "dataset": "own"}, dataset=dataset)


def test_training_never_reads_a_test_image() -> None:
    poisoned = dataclasses.replace(
        small_dataset(), x_test=np.full((100, 784), np.nan, np.float32), t_test=np.full(100, 9)
    )

    assert reports(dataset=poisoned) == reports(dataset=small_dataset())


def test_the_sealed_test_trains_again_on_everything_and_averages_probabilities() -> None:
    beats: list[int] = []
    settings = configuration(SMALL | {"learning_rate": 0.3, "epochs": 6}, {})

    result = evaluate_on_test_set(
        settings, seed=7, study_seed=1, ensemble=3, dataset=load("mnist"), between_epochs=lambda: beats.append(1)
    )

    assert len(beats) == 2 * 6  # the three train side by side
    assert result.members[0]["seed"] == 7
    assert len({member["seed"] for member in result.members}) == 3
    assert result.members[0]["validation_accuracy"] == reports({"learning_rate": 0.3, "epochs": 6})[-1].value
    assert 0.5 < result.test_accuracy < 1
    assert result == evaluate_on_test_set(settings, seed=7, study_seed=1, ensemble=3, dataset=load("mnist"))


def test_an_ensemble_of_one_is_the_member_itself_and_begins_every_larger_one() -> None:
    settings = configuration(SMALL, {})
    one, two = (
        evaluate_on_test_set(settings, seed=7, study_seed=1, ensemble=k, dataset=small_dataset()) for k in (1, 2)
    )

    assert one.members == two.members[:1]
    assert one.test_accuracy == one.members[0]["test_accuracy"]


@pytest.mark.slow
def test_the_sealed_test_trains_on_validation_images_too() -> None:
    """Given validation images that alone hold one class, when tested, then that class is known."""
    settings = configuration(SMALL | {"samples": 200, "validation_fraction": 0.5, "epochs": 30, "dataset": "own"}, {})
    dataset = small_dataset(training=200)
    order = np.random.default_rng((1, hpo_worker.trainer.SPLIT)).permutation(200)
    labels = np.empty(200, np.int64)
    labels[order[:100]], labels[order[100:]] = 0, 1
    validating = dataset.x_train[order[100:]]
    odd = dataclasses.replace(dataset, t_train=labels, x_test=validating, t_test=np.ones(100, np.int64))

    result = evaluate_on_test_set(settings, seed=7, study_seed=1, ensemble=1, dataset=odd)

    assert result.validation_accuracy == 0
    assert result.test_accuracy > 0.9


def test_a_test_that_diverges_says_so() -> None:
    with pytest.raises(Diverged):
        evaluate_on_test_set(
            configuration(SMALL | {"learning_rate": 1e30}, {}), seed=7, study_seed=1, ensemble=1, dataset=load("mnist")
        )
