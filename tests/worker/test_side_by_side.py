"""A trial trained in group is the trial trained alone, to the last bit, whoever comes along and leaves when."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_service.domain.neural_network import OPTIMIZERS, NetworkConfiguration, configuration
from hpo_worker.datasets import Dataset, load
from hpo_worker.trainer import MAX_GROUP_SIZE, Diverged, EpochReport, Member, TrialGroup, can_train_together, train


def mnist() -> Dataset:
    return load("mnist")  # when it is wanted: each process of the tests imports this module


def own(images: int, pixels: int, classes: int) -> Dataset:
    """Noise with labels; few pixels train as pixels, many in function space."""
    rng = np.random.default_rng((images, pixels, classes))
    x = rng.random((images, pixels), dtype=np.float32)
    return dataclasses.replace(mnist(), name="own", x_train=x, t_train=np.arange(images) % classes)


def alone(each: NetworkConfiguration, seed: int, dataset: Dataset) -> list[EpochReport | None]:
    reports: list[EpochReport | None] = []
    try:
        reports += train(each, seed=seed, study_seed=3, dataset=dataset)
    except Diverged:
        reports.append(None)
    return reports


def together(
    members: Sequence[NetworkConfiguration], dataset: Dataset, leaving: Mapping[int, int] = {}
) -> dict[int, list[EpochReport | None]]:
    """What each member reports, by its seed; `leaving`: after which epoch those with an end of their own leave."""
    group = TrialGroup([Member(each, seed) for seed, each in enumerate(members)], study_seed=3, dataset=dataset)
    reports: dict[int, list[EpochReport | None]] = {seed: [] for seed in range(len(members))}
    while group.members:
        staying = []
        for place, (member, report) in enumerate(zip(group.members, group.train_epoch(), strict=True)):
            reports[member.seed].append(report)
            end = min(member.configuration.epochs, leaving.get(member.seed, 99))
            if report is not None and group.epoch < end:
                staying.append(place)
        group.retain(staying)
    return reports


SHAPES = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(["relu", "sigmoid", "tanh"]),
        "batch_norm": st.booleans(),
        "optimizer": st.sampled_from(OPTIMIZERS),
        "hidden_layers": st.integers(1, 3),
        "hidden_units": st.sampled_from([1, 2, 7, 8, 16, 33, 100]),
        "batch_size": st.sampled_from([2, 3, 16, 50, 100]),
        "samples": st.sampled_from([20, 75, 130]),
    }
)
RATES = st.floats(1e-6, 2.0)
EACH = st.fixed_dictionaries(
    {
        "learning_rate": st.one_of(RATES, RATES, st.just(1e30)),
        "weight_decay": st.one_of(st.just(0.0), st.floats(1e-8, 0.3)),
        "momentum": st.floats(0.0, 0.99),
        "weight_init": st.one_of(st.sampled_from(["he", "xavier"]), st.floats(1e-4, 1.0)),
        "epochs": st.integers(1, 4),
    }
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    SHAPES,
    st.lists(EACH, min_size=1, max_size=8),
    st.floats(0.05, 0.9),
    st.booleans(),
    st.sampled_from([9, 784]),
    st.sampled_from([2, 10]),
    st.dictionaries(st.integers(0, 7), st.integers(1, 3)),
)
def test_alone_and_in_group_a_trial_reports_the_same_bits(
    shape: dict[str, object],
    own_settings: list[dict[str, object]],
    dropout: float,
    drops: bool,
    pixels: int,
    classes: int,
    leaving: dict[int, int],
) -> None:
    dataset = own(150, pixels, classes)
    ratios = [dropout * (seed + 1) / 9 if drops else 0.0 for seed in range(8)]
    members = [
        configuration(shape | each | {"dataset": "own", "dropout": ratio}, {})
        for each, ratio in zip(own_settings, ratios, strict=False)
    ]
    assert all(can_train_together(members[0], member) for member in members)

    found = together(members, dataset, leaving)

    for seed, member in enumerate(members):
        expected = alone(member, seed, dataset)
        assert found[seed] == expected[: leaving.get(seed, 99)]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_articles_network_reports_the_same_bits_in_company(optimizer: str) -> None:
    rates = (1e-5, 1e-3, 1e-2, 0.1)
    members = [
        configuration({"samples": 500, "epochs": 3, "optimizer": optimizer}, {"learning_rate": r}) for r in rates
    ]

    found = together(members, mnist(), leaving={1: 1})

    assert len(members) == MAX_GROUP_SIZE
    for seed, member in enumerate(members):
        assert found[seed] == alone(member, seed, mnist())[: 1 if seed == 1 else 3]


@pytest.mark.slow
def test_a_test_of_bits_sees_one_bit() -> None:
    """Given group in which one learning rate is the next number up, then the reports differ: the tests above can."""
    rates = (0.1, float(np.nextafter(np.float32(0.1), np.float32(1))))
    members = [configuration({"samples": 500, "epochs": 3}, {"learning_rate": rate}) for rate in rates]

    assert together(members, mnist())[0] != together(members[::-1], mnist())[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("samples", 400),
        ("batch_size", 50),
        ("hidden_units", 50),
        ("hidden_layers", 2),
        ("activation", "tanh"),
        ("batch_norm", True),
        ("optimizer", "adam"),
        ("dropout", 0.1),
        ("validation_fraction", 0.3),
    ],
)
def test_trials_of_another_shape_train_apart(setting: str, value: object) -> None:
    common = configuration({"samples": 500}, {})

    assert not can_train_together(common, configuration({"samples": 500} | {setting: value}, {}))


def test_trials_that_differ_in_numbers_only_train_together() -> None:
    common = configuration({"samples": 500}, {})
    numbers: dict[str, float] = {"learning_rate": 0.5, "weight_decay": 0.1, "momentum": 0.1}
    numbers |= {"weight_init": 0.3, "epochs": 9}

    assert can_train_together(common, configuration({"samples": 500, **numbers}, {}))
