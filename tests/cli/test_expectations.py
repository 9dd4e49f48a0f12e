"""What a study measured stands beside what was expected of it, each number from the trials that it says."""

from __future__ import annotations

import pytest

from hpo_service.cli.expectations import compared, rows
from hpo_service.cli.figure import Figure, figure_of
from hpo_service.cli.summary import Observation, summary_lines
from tests.cli.canned import a_study, a_trial

# (batch_norm, weight_init, value, round): a study of four trials that ended and one that diverged
TRIALS = [
    a_trial(0, 0.8, reports=20, params={"batch_norm": True, "weight_init": 1}),
    a_trial(1, 0.6, reports=20, params={"batch_norm": True, "weight_init": 0.1}),
    a_trial(2, 0.4, reports=20, params={"batch_norm": False, "weight_init": 0.1}, round=1),
    a_trial(3, 0.1, reports=20, params={"batch_norm": False, "weight_init": 0.01}, round=1),
    a_trial(4, 0, state="FAIL", values=None, reason="diverged", params={"batch_norm": False, "weight_init": 1}),
]
TEST = {
    "state": "COMPLETE",
    "test_accuracy": 0.8,
    "validation_accuracy": 0.9,
    "gap": 0.1,
    "ensemble": 2,
    "members": [{"seed": 1, "test_accuracy": 0.7}, {"seed": 2, "test_accuracy": 0.76}],
}


def row(study=None, trials=TRIALS, **expected):
    figure = Figure.model_validate({"kind": "best", "expected": [{"reference": [0.5], **expected}]})
    (found,) = rows(figure, study or a_study(test=TEST), trials)
    return found


@pytest.mark.parametrize(
    ("expected", "what", "shown"),
    [
        ({"measure": "value"}, "value", "0.475 [0.100, 0.800]"),
        ({"measure": "validation_accuracy", "take": "median"}, "median validation accuracy", "0.500"),
        ({"measure": "value", "take": "highest"}, "highest value", "0.800"),
        ({"measure": "value", "of": {"batch_norm": True}}, "value, batch_norm true", "0.700 [0.600, 0.800]"),
        ({"measure": "value", "round": 1}, "value, round 1", "0.250 [0.100, 0.400]"),
        ({"measure": "weight_init", "best": 2, "take": "lowest"}, "lowest weight_init of the best 2", "0.100"),
        ({"measure": "value", "take": "above", "threshold": 0.5}, "trials above 0.5, value", "2"),
        ({"measure": "value", "take": "share_above", "threshold": 0.5}, "share above 0.5, value", "0.500"),
        ({"measure": "test_accuracy"}, "test accuracy", "0.800"),
        ({"measure": "member_test_accuracy"}, "test accuracy of one network alone", "0.730 [0.700, 0.760]"),
    ],
)
def test_each_measure_is_taken_of_the_trials_that_it_names(expected, what, shown):
    found = row(**expected)

    assert (found.what, found.shown) == (what, shown)


def test_a_trial_that_diverged_has_learned_nothing_and_counts_as_below():
    found = row(measure="training_accuracy", of={"batch_norm": False}, take="below", threshold=0.2)

    assert found.shown == "2"


def test_true_is_not_the_number_one():
    assert row(measure="value", of={"weight_init": 1}).shown == "0.800"
    assert row(measure="value", of={"weight_init": True}).shown == "not measured"


def test_the_gap_is_what_training_is_ahead_of_validation():
    (report,) = [{"step": 1, "value": 0.6, "metrics": {"train_accuracy": 0.9}}]

    assert row(trials=[a_trial(0, 0.6) | {"reports": [report]}], measure="gap").shown == "0.300"


def test_the_best_trials_of_a_minimized_study_are_the_lowest():
    study = a_study(directions=["minimize"])

    assert row(study, measure="value", best=1).shown == "0.100"


@pytest.mark.parametrize(
    ("reference", "within"),
    [([0.5], None), ([0.4, 0.5], True), ([0.475, 0.475, 0.475], True), ([0.5, 0.48, 0.6], False)],
)
def test_within_is_said_where_the_reference_has_a_range(reference, within):
    assert row(measure="value", reference=reference).is_within is within


def test_nothing_measured_is_neither_within_nor_outside():
    found = row(trials=[], measure="value", reference=[0.1, 0.9])

    assert (found.shown, found.is_within) == ("not measured", None)


def test_the_table_stands_below_the_claim_and_ends_with_how_many_lie_within():
    figure = Figure.model_validate(
        {
            "kind": "best",
            "claim": "It learns.",
            "source": "the book",
            "expected": [
                {"measure": "value", "reference": [0.5, 0.4, 0.6]},
                {"measure": "value", "take": "highest", "reference": [0.9, 1.0]},
                {"measure": "value", "take": "lowest", "reference": [0.2]},
            ],
        }
    )

    lines = list(compared(figure, rows(figure, a_study(), TRIALS)))

    assert [" ".join(line.split()) for line in lines] == [
        "It learns.",
        "measured the book within",
        "value 0.475 [0.100, 0.800] 0.500 [0.400, 0.600] yes",
        "highest value 0.800 0.900 … 1.000 no",
        "lowest value 0.100 0.200",
        "1 of 2 lie within the range of the reference.",
    ]


def test_metadata_that_mean_something_else_are_left_alone():
    assert figure_of(a_study(metadata={"figure": "figure 3 of the report"})) is None
    assert "figure 3" not in "\n".join(summary_lines(Observation(a_study(metadata={"figure": "figure 3"}))))


def test_a_figure_that_does_not_fit_its_study_is_left_alone():
    assert figure_of(a_study(metadata={"figure": {"kind": "rounds"}})) is None
    assert figure_of(a_study(metadata={"figure": {"kind": "grid", "panels": "x", "lines": "y"}})) is None
    assert figure_of(a_study(metadata={"figure": {"kind": "best"}})) is not None


def test_an_infinite_value_is_ranked_and_no_number_to_take_a_mean_of():
    trials = [a_trial(0, "Infinity"), a_trial(1, 0.5)]

    assert row(trials=trials, measure="value").shown == "0.500"
    assert row(trials=trials, measure="value", best=1).shown == "not measured"


def test_where_nothing_is_searched_no_parameter_mattered():
    fixed = {"dropout": {"type": "categorical", "choices": [0.0], "when": None}}
    study = a_study(search_space=fixed, rounds=[{"round": 0, "search_space": fixed, "trials": 5, "first_trial": 0}])

    words = "\n".join(summary_lines(Observation(study, importances={"dropout": None})))

    assert "What mattered" not in words
