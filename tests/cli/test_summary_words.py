"""A summary says in words what a newcomer would have to work out from the JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo_service.cli import wording
from hpo_service.cli.summary import Observation, summary_lines
from tests.cli.canned import a_round, a_study, a_trial


def told(study, **seen):
    return "\n".join(summary_lines(Observation(study, **seen)))


def trials_at(*learning_rates):
    return [
        a_trial(number, 0.9 - number / 100, params={"learning_rate": rate, "weight_decay": 10 ** -(5 + number % 3)})
        for number, rate in enumerate(learning_rates)
    ]


def test_the_best_trial_is_told_with_its_params_and_what_its_value_is():
    assert (
        "Best: trial 7, validation accuracy 0.83 (maximized)\n  learning_rate  0.0092\n  weight_decay   3.4e-7"
        in told(a_study())
    )


def test_the_rounds_are_told_with_their_ranges_and_how_many_decades_they_lost():
    study = a_study(rounds=[a_round(0), a_round(1, learning_rate=(1e-3, 1e-1)), a_round(2, learning_rate=(1e-2, 1e-1))])

    words = " ".join(told(study).split())

    assert "round 0 40 trials learning_rate 1e-6 … 0.01 4.0 decades" in words
    assert "learning_rate 0.001 … 0.1 2.0 decades, 2.0 fewer, upper side moved out" in words
    assert "learning_rate 0.01 … 0.1 1.0 decades, 1.0 fewer" in words


def test_a_parameter_that_makes_no_difference_is_said_to_make_none():
    item = {"code": "hardly_matters", "parameter": "weight_decay", "detail": "it hardly matters", "suggestion": None}
    words = told(a_study(), importances={"weight_decay": 0.03, "learning_rate": 0.97}, advice=[item])

    assert "learning_rate   97%\n" in words
    assert "weight_decay     3%  hardly matters in this range: fix it" in words


def test_few_trials_are_said_to_be_too_few_for_importances():
    few = a_study(counts={"WAITING": 0, "RUNNING": 0, "COMPLETE": 8, "PRUNED": 0, "FAIL": 0})

    words = told(few, importances={"learning_rate": 0.99, "weight_decay": 0.01})
    assert "8 are too few to be sure" in words
    assert "hardly matters" not in words  # unless the server says so, which it does not before there are twenty


def test_what_never_varied_is_said_to_have_never_varied():
    words = told(a_study(), importances={"learning_rate": 1.0, "weight_decay": None})

    assert "learning_rate  100%" in words
    assert "weight_decay      -  never varied" in words


EDGE = {
    "code": "edge",
    "parameter": "learning_rate",
    "detail": "8 of the best 10 trials crowd the upper end of learning_rate (0.01): search on to 0.1",
    "evidence": {"side": "high"},
    "suggestion": {"parameter": "learning_rate", "high": 0.1},
}


def test_advice_is_told_and_of_an_edge_where_to_search_next():
    words = told(a_study(), advice=[EDGE])

    assert "Advice\n  8 of the best 10 trials crowd the upper end of learning_rate (0.01): search on to 0.1.\n" in words
    assert "give learning_rate high = 0.1, or use [narrowing] with expand = true." in words
    bounded = told(a_study(), advice=[{**EDGE, "detail": "the objective takes nothing beyond", "suggestion": None}])
    assert "takes nothing beyond." in bounded
    assert "study file" not in bounded
    assert "Advice" not in told(a_study())


def test_the_test_result_is_told_beside_the_validation_accuracy():
    test = {"state": "COMPLETE", "test_accuracy": 0.79, "validation_accuracy": 0.83, "gap": 0.04, "ensemble": 1}

    assert "Test accuracy 0.79, beside 0.83 on validation (gap 0.04)" in told(a_study(test=test))


def test_a_test_set_that_the_file_leaves_sealed_is_said_to_be_so():
    assert "left sealed, as the study file says" in told(a_study(metadata={"test": {"leave_sealed": True}}))
    assert "left sealed" not in told(a_study())


def test_a_test_that_failed_says_why():
    assert "evaluation is FAIL: no_data" in told(a_study(test={"state": "FAIL", "ensemble": 1, "reason": "no_data"}))


def test_failures_are_counted_by_reason():
    assert "2 trials failed: diverged" in told(a_study(), failures={"diverged": 2})


def test_a_study_without_a_result_says_so():
    assert "No trial has a result yet. The validation accuracy is maximized." in told(a_study(best=None))


def test_with_several_directions_the_front_is_listed():
    study = a_study(directions=["maximize", "minimize"])
    del study["best"]
    study["front"] = [{"number": 3, "params": {"learning_rate": 0.1}, "values": [0.9, 12.0], "attempt": 1}]

    assert "trial 3  0.9, 12  learning_rate 0.1" in told(study)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1e-06, "1e-6"),
        (0.01, "0.01"),
        (123456789.0, "1.23e8"),
        (50, "50"),
        (True, "true"),
        (None, "null"),
        ("sgd", "sgd"),
        ("Infinity", "Infinity"),
        (0.0, "0"),
    ],
)
def test_numbers_are_written_short(value, written):
    assert wording.number(value) == written


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.2, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (7300, "2 h 01 min")]
)
def test_durations_are_written_as_people_say_them(seconds, written):
    assert wording.duration(seconds) == written


def confirmed(state="COMPLETE", tied=(), **values):
    """A study whose trials t7, t3 and so on were confirmed, best first, with these values."""
    ranking = [
        {
            "number": int(name[1:]),
            "mean": sum(each) / len(each),
            "low": min(each) - 0.01,
            "high": max(each) + 0.01,
            "values": list(each),
            "failed": 0,
        }
        for name, each in values.items()
    ]
    return a_study(confirmation={"state": state, "top": 3, "seeds": 2, "ranking": ranking, "tied": list(tied)})


def test_a_confirmed_winner_is_told_with_what_it_is_worth_and_how_much_was_luck():
    study = confirmed(t3=(0.80, 0.82), t7=(0.81, 0.77), t5=(0.69, 0.71), tied=[7])
    words = told(study, told={3: 0.83, 7: 0.84, 5: 0.81})

    assert "Best: trial 7, validation accuracy 0.83" in words
    assert "Confirmed: trial 3, validation accuracy 0.8062" in words  # drawn towards the others, by the noise
    assert "Mean of 2 trainings with fresh seeds: 0.81 (0.79 … 0.83, in 95 of 100 cases)." in words
    assert "The best of 3 means is a little too good itself" in words
    assert "It had told 0.83: 0.024 of that was luck." in words
    assert "Trial 7, the best told, had told 0.84 and is worth 0.788: 0.052 of that was luck." in words
    assert "Cannot be told from it: trial 7." in words
    assert "Worse, in 95 of 100 cases: 1 other trial." in words


def test_bad_luck_is_not_called_luck_and_less_is_better_where_it_is():
    study = confirmed(t7=(0.84, 0.86))
    assert "It had told 0.83: none of that was luck." in told(study, told={7: 0.83})
    assert "It had told 0.83: 0.02 of that was luck." in told({**study, "directions": ["minimize"]}, told={7: 0.83})
    assert "too good itself" not in told(study)


def test_a_confirmation_under_way_or_in_vain_is_told_as_such():
    assert "2 times each; nothing is known yet." in told(confirmed("RUNNING"))
    assert "2 times each; so far:\nConfirmed: trial 3" in told(confirmed("RUNNING", t3=(0.8, 0.8)))
    assert "Confirmed: nothing." in told(confirmed())
    assert "onfirm" not in told(a_study())


def test_what_is_to_be_typed_is_quoted_where_a_path_has_a_blank(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["/my tools/bin/hpo", "run"])
    assert wording.hpo_run(Path("my study.toml")) == "'/my tools/bin/hpo' run 'my study.toml'"
    monkeypatch.setattr("sys.argv", ["/tools/bin/hpo", "run"])
    assert wording.hpo_run(Path("study.toml")) == "/tools/bin/hpo run study.toml"
