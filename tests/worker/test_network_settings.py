"""The settings of the built-in objective: what a study may fix, search, and not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_service.domain.errors import Invalid
from hpo_service.domain.neural_network import (
    ACTIVATIONS,
    INITIALIZERS,
    KIND,
    OPTIMIZERS,
    SETTINGS,
    bounds,
    configuration,
    objective_faults,
)
from hpo_service.domain.search_space import (
    FloatParameter,
    IntParameter,
    SearchSpace,
    choice,
    integer,
    log_uniform,
    uniform,
)
from hpo_worker.nn import initializers, layers, optimizers

LEARNING_RATE = log_uniform(1e-6, 1e-2)


def space(**parameters: object) -> SearchSpace:
    return SearchSpace.model_validate(parameters or {"learning_rate": LEARNING_RATE})


def faults(objective: dict[str, object] | None = None, **parameters: object) -> list[tuple[str, str]]:
    found = objective_faults({"kind": KIND} | (objective or {}), space(**parameters))
    return [(fault.pointer, fault.detail) for fault in found]


def test_the_choices_offered_are_those_the_network_has() -> None:
    assert set(ACTIVATIONS) == layers.ACTIVATIONS.keys()
    assert set(OPTIMIZERS) == optimizers.OPTIMIZERS.keys()
    assert set(INITIALIZERS) == initializers.INITIALIZERS.keys()


def test_the_defaults_are_the_article_s() -> None:
    settings = configuration({"kind": KIND}, {})

    assert settings.hidden_sizes == (100,) * 6
    assert (settings.epochs, settings.batch_size, settings.validation_fraction) == (50, 100, 0.2)
    assert (settings.dataset, settings.samples, settings.activation, settings.weight_init) == (
        "mnist",
        None,
        "relu",
        "he",
    )
    assert (settings.optimizer, settings.learning_rate, settings.weight_decay) == ("sgd", 0.01, 0.0)
    assert (settings.batch_norm, settings.dropout, settings.momentum) == (False, 0.0, 0.9)


FIXED = {
    "dataset": "Fashion-MNIST",
    "samples": 500,
    "validation_fraction": 0.1,
    "validation_samples": 100,
    "epochs": 1,
    "batch_size": 1,
    "hidden_layers": 1,
    "hidden_units": 1,
    "hidden_sizes": [100, 50],
    "activation": "tanh",
    "weight_init": 0.01,
    "batch_norm": True,
    "dropout": 0,
    "optimizer": "adam",
    "momentum": 0.5,
    "learning_rate": 1,
    "weight_decay": 0,
}
SEARCHED: dict[str, Any] = {
    "samples": integer(100, 1000),
    "validation_fraction": uniform(0.1, 0.5),
    "validation_samples": choice(None, 100),
    "epochs": integer(1, 100, log=True),
    "batch_size": integer(1, 200),
    "hidden_layers": integer(1, 10),
    "hidden_units": choice(10, 100),
    "hidden_sizes": choice([100], (100, 50), None),
    "activation": choice("relu", "tanh"),
    "weight_init": choice("he", "xavier", 0.01),
    "batch_norm": choice(True, False),
    "dropout": uniform(0, 0.5),
    "optimizer": choice(*OPTIMIZERS),
    "momentum": uniform(0, 0.99),
    "learning_rate": integer(1, 2),
    "weight_decay": log_uniform(1e-8, 1e-4),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_can_be_fixed(name: str) -> None:
    other = {"weight_decay": uniform(0, 1)} if name == "learning_rate" else {}

    assert faults({name: FIXED[name]}, **other) == []
    assert configuration({name: FIXED[name]}, {})


@pytest.mark.parametrize("name", SEARCHED)
def test_each_setting_but_the_dataset_can_be_searched(name: str) -> None:
    assert faults(**{name: SEARCHED[name]}) == []
    assert SETTINGS.keys() - SEARCHED.keys() == {"dataset"}


def test_a_number_may_be_searched_as_the_deviation_of_the_weights() -> None:
    assert faults(weight_init=log_uniform(1e-4, 1)) == []
    assert configuration({}, {"weight_init": 0.5}).weight_init == 0.5


def test_the_study_of_the_contract_is_taken() -> None:
    objective = {"dataset": "mnist", "samples": 500, "epochs": 50}

    assert not faults(
        objective,
        learning_rate=LEARNING_RATE,
        weight_decay=log_uniform(1e-8, 1e-4),
        hidden_units=integer(32, 256, log=True),
        optimizer=choice("sgd", "momentum"),
        momentum=uniform(0.5, 0.99, when={"optimizer": ["momentum"]}),
    )


REFUSED: dict[str, tuple[dict[str, object], dict[str, Any], str, str]] = {
    "a misspelt name": ({"epoch": 5}, {}, "/objective/epoch", "did you mean 'epochs'?"),
    "an unknown name": ({"xyz": 5}, {}, "/objective/xyz", "it has dataset, samples"),
    "a misspelt name that is searched": (
        {},
        {"learning-rate": LEARNING_RATE},
        "/search_space/learning-rate",
        "did you mean 'learning_rate'?",
    ),
    "a name that must be escaped": ({"a/b~c": 1}, {}, "/objective/a~1b~0c", "is not a setting"),
    "kind as a parameter": ({}, {"kind": choice("a")}, "/search_space/kind", "'kind' is not a setting"),
    "another kind": ({"kind": "other"}, {}, "/objective/kind", "'other' is not 'neural_network'"),
    "both places": (
        {"learning_rate": 0.1},
        {"learning_rate": LEARNING_RATE},
        "/search_space/learning_rate",
        "is fixed in the objective (0.1) as well",
    ),
    "below": ({"epochs": 0}, {}, "/objective/epochs", "0 is below 1, the lowest allowed"),
    "above": ({"hidden_units": 10_001}, {}, "/objective/hidden_units", "10001 is above 10000, the highest allowed"),
    "an excluded bound": ({"dropout": 1}, {}, "/objective/dropout", "1 must be below 1.0"),
    "a learning rate of 0": ({"learning_rate": 0}, {"epochs": integer(1, 2)}, "/objective/learning_rate", "above 0.0"),
    "not finite": (
        {"learning_rate": float("inf")},
        {"epochs": integer(1, 2)},
        "/objective/learning_rate",
        "inf is not a finite number",
    ),
    "a number no double holds": ({"weight_decay": 10**400}, {}, "/objective/weight_decay", "is not a finite number"),
    "a fraction of an epoch": ({"epochs": 1.5}, {}, "/objective/epochs", "1.5 is not an integer"),
    "true for a number": ({"epochs": True}, {}, "/objective/epochs", "True is not an integer at least 1"),
    "a number for true": ({"batch_norm": 1}, {}, "/objective/batch_norm", "1 is not true or false"),
    "null": ({"epochs": None}, {}, "/objective/epochs", "None is not an integer"),
    "text for a number": ({"dropout": "0.5"}, {}, "/objective/dropout", "'0.5' is not a number at least 0.0 and below"),
    "a misspelt word": ({"optimizer": "Adm"}, {}, "/objective/optimizer", "did you mean 'adam'?"),
    "a deviation of 0": ({"weight_init": 0}, {}, "/objective/weight_init", "0 must be above 0.0"),
    "a path": ({"dataset": "../mnist"}, {}, "/objective/dataset", "'../mnist' is not a name of 1 to 63 letters"),
    "a size in a list": ({"hidden_sizes": [100, 0]}, {}, "/objective/hidden_sizes/1", "0 is below 1"),
    "an empty list": ({"hidden_sizes": []}, {}, "/objective/hidden_sizes", "0 layers; a network has from 1 to 100"),
    "no list": ({"hidden_sizes": 100}, {}, "/objective/hidden_sizes", "100 is not a list of layer sizes"),
    "a range too low": ({}, {"dropout": uniform(-0.1, 0.5)}, "/search_space/dropout/low", "-0.1 is below 0.0"),
    "a range too high": ({}, {"dropout": uniform(0, 1)}, "/search_space/dropout/high", "1.0 must be below 1.0"),
    "a choice beyond": ({}, {"epochs": choice(5, 0)}, "/search_space/epochs/choices/1", "0 is below 1"),
    "a word among choices": (
        {},
        {"activation": choice("relu", "gelu")},
        "/search_space/activation/choices/1",
        "did you mean 'relu'?",
    ),
    "floats for integers": (
        {},
        {"hidden_units": uniform(10, 100)},
        "/search_space/hidden_units/type",
        'search it with "type": "int"',
    ),
    "a range for words": (
        {},
        {"optimizer": integer(0, 3)},
        "/search_space/optimizer/type",
        "search it with a categorical parameter",
    ),
    "a dataset that is searched": ({}, {"dataset": choice("mnist")}, "/search_space/dataset", "cannot be searched"),
    "no list that is searched": (
        {},
        {"hidden_sizes": choice(10)},
        "/search_space/hidden_sizes/choices/0",
        "not a list",
    ),
    "fraction and number": (
        {"validation_fraction": 0.1, "validation_samples": 10},
        {},
        "/objective/validation_fraction",
        "cannot be given together with validation_samples",
    ),
    "sizes and a number of layers": (
        {"hidden_sizes": [10]},
        {"hidden_layers": integer(1, 2)},
        "/search_space/hidden_layers",
        "cannot be given together with hidden_sizes",
    ),
    "more than MNIST has": ({"samples": 60_001}, {}, "/objective/samples", "the dataset has 60000 training images"),
    "more than are left over": (
        {"samples": 50_000, "validation_samples": 10_001},
        {},
        "/objective/validation_samples",
        "asks for 50000 + 10001 images",
    ),
    "nothing to validate with": ({"samples": 2}, {}, "/objective/samples", "none is left for validation"),
    "nothing to train with": (
        {"samples": 10},
        {"validation_fraction": uniform(0.1, 0.96)},
        "/objective/samples",
        "none is left for training",
    ),
    "a batch of one, normalized": (
        {"batch_norm": True},
        {"batch_size": integer(1, 100)},
        "/search_space/batch_size",
        "a batch of one image is its own mean",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_study_that_could_not_be_trained_is_refused_at_the_place_with_the_rule(name: str) -> None:
    objective, parameters, pointer, rule = REFUSED[name]

    found = faults(objective, **parameters)

    assert [place for place, _ in found] == [pointer]
    assert rule in found[0][1]


def test_null_is_as_good_as_not_given() -> None:
    assert not faults({"hidden_sizes": None, "hidden_layers": 3, "validation_samples": None, "samples": None})


def test_a_dataset_of_ones_own_may_have_any_size() -> None:
    assert not faults({"dataset": "own", "samples": 1_000_000})


def test_a_long_value_makes_a_short_message() -> None:
    assert all(len(detail) < 300 for _, detail in faults({"optimizer": "x" * 10_000, "epochs": [[1] * 10_000]}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("batch_size", (1, 100_000)),
        ("weight_decay", (0, None)),
        ("dropout", (0, 0.9999999999999999)),
        ("learning_rate", (5e-324, None)),
        ("weight_init", (5e-324, None)),
    ],
)
def test_bounds_are_the_outermost_values_allowed(name: str, expected: tuple[float | None, float | None]) -> None:
    assert bounds(name) == expected
    for bound in bounds(name):
        assert bound is None or not list(SETTINGS[name].wrong(bound))


def test_a_configuration_is_what_is_fixed_then_the_params_then_the_defaults() -> None:
    settings = configuration(
        {"kind": KIND, "hidden_layers": 2, "samples": 500.0}, {"hidden_units": 32.0, "learning_rate": 1}
    )

    assert settings.hidden_sizes == (32, 32)
    assert (settings.samples, settings.learning_rate, settings.epochs) == (500, 1.0, 50)
    assert isinstance(settings.samples, int)
    assert isinstance(settings.learning_rate, float)
    assert hash(settings)


def test_sizes_one_by_one_take_the_place_of_layers_and_units() -> None:
    assert configuration({"hidden_sizes": [100, 50]}, {}).hidden_sizes == (100, 50)
    assert configuration({}, {"hidden_sizes": [100, 50.0]}).hidden_sizes == (100, 50)
    assert configuration({}, {"hidden_sizes": None}).hidden_sizes == (100,) * 6


@pytest.mark.parametrize(
    ("objective", "params", "pointer"),
    [
        ({}, {"epochs": 0}, "/params/epochs"),
        ({}, {"epoch": 1}, "/params/epoch"),
        ({"epochs": 0}, {}, "/objective/epochs"),
        ({"epochs": 1}, {"epochs": 1}, "/params/epochs"),
        ({"samples": 3}, {"validation_fraction": 0.1}, "/objective/samples"),
        ({"hidden_sizes": [3]}, {"hidden_units": 3}, "/params/hidden_units"),
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused_at_the_place(
    objective: dict[str, object], params: dict[str, object], pointer: str
) -> None:
    with pytest.raises(Invalid) as refused:
        configuration(objective, params)

    assert [fault.pointer for fault in refused.value.faults] == [pointer]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)) | st.text(), JSON, max_size=6))
def test_any_objective_is_taken_or_refused_in_words(objective: dict[str, object]) -> None:
    found = objective_faults(objective, space(learning_rate=LEARNING_RATE))

    assert all(fault.pointer.startswith("/") and fault.detail for fault in found)
    if not found:
        configuration(objective, {"learning_rate": 0.1})


@given(
    st.sampled_from(["samples", "validation_fraction", "validation_samples", "epochs", "batch_size", "dropout"]),
    st.tuples(*[st.integers(-3, 70_000) | st.floats(-1, 2)] * 2).map(sorted),
    st.floats(0, 1),
    st.dictionaries(st.just("samples"), st.integers(1, 60_000)),
)
def test_every_param_of_a_range_that_is_taken_makes_a_configuration(
    name: str, ends: list[float], share: float, objective: dict[str, object]
) -> None:
    """Given a study that was taken, when any trial of it comes, then it can be trained on MNIST."""
    low, high = ends
    if all(isinstance(end, int) for end in ends):
        parameter: IntParameter | FloatParameter = integer(int(low), int(high))
        param: float = round(low + share * (high - low))
    else:
        parameter = uniform(low, high)
        param = min(high, low + share * (high - low))

    if not objective_faults(objective, space(**{name: parameter})):
        training, validation = configuration(objective, {name: param}).split_sizes(60_000)
        assert training >= 1
        assert validation >= 1
