"""A picture can be opened, has the size for its panels, and shows something."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hpo_service.cli.pictures import draw
from tests.cli.canned import a_study, a_trial


def drawn(study, trials, file):
    draw(study, trials, file)
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def ink(pixels):
    return float((pixels < 250).any(axis=2).mean())


@pytest.mark.slow
def test_twenty_curves_are_drawn_in_four_rows_of_five(tmp_path):
    pixels = drawn(a_study(), [a_trial(n, 0.9 - n / 50, reports=20) for n in range(25)], tmp_path / "new" / "p.png")

    height, width, _ = pixels.shape
    assert width > 1500
    assert height > 1000
    panels = [ink(part) for row in np.array_split(pixels, 4) for part in np.array_split(row, 5, axis=1)]
    assert min(panels) > 0.02, panels


@pytest.mark.slow
def test_fewer_trials_leave_the_other_panels_empty(tmp_path):
    pixels = drawn(a_study(), [a_trial(n, 0.9, reports=5) for n in range(6)], tmp_path / "p.png")

    assert ink(pixels[-200:-60, -200:]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "study",
    [
        a_study(objective=None),
        a_study(directions=["maximize", "minimize"]),
        a_study(search_space={"kind": {"type": "categorical", "choices": ["a", "b", None, True], "when": None}}),
    ],
    ids=["one direction", "two directions", "categorical"],
)
def test_without_reports_the_values_are_drawn_over_trials_and_parameters(study, tmp_path):
    chosen = ["a", "b", None, True]
    trials = [
        a_trial(n, n / 10, values=[n / 10, 1.0], params={"learning_rate": 0.1 / (n + 1), "kind": chosen[n % 4]})
        for n in range(8)
    ]

    assert ink(drawn(study, trials, tmp_path / "p.png")) > 0.02


@pytest.mark.slow
def test_values_that_are_no_finite_numbers_leave_a_gap(tmp_path):
    trial = a_trial(1, 0.5, reports=4)
    trial["reports"][2]["value"] = "Infinity"
    trial["reports"][3]["metrics"] = None
    trials = [trial, a_trial(2, 0.1, reports=0, values=["-Infinity"])]

    assert ink(drawn(a_study(), trials, tmp_path / "p.png")) > 0.02
    assert ink(drawn(a_study(), trials[1:], tmp_path / "q.png")) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("reports", [0, 4], ids=["values", "curves"])
@pytest.mark.parametrize("huge", [1.7e308, 1.7976931348623157e308, -1.7e308])
def test_values_near_the_largest_double_are_drawn(tmp_path, reports, huge):
    trials = [a_trial(n, huge if n % 2 else -huge, reports=reports) for n in range(4)]
    for trial in trials:
        trial["reports"] = [{**report, "value": huge * (-1) ** report["step"]} for report in trial["reports"]]
        trial["params"] = {**trial["params"], "learning_rate": abs(huge)}
    study = a_study(objective=None, search_space={"learning_rate": {"type": "float", "log": False, "when": None}})
    assert ink(drawn(study, trials, tmp_path / "p.png")) > 0.02


def test_a_trial_without_a_curve_keeps_its_place_and_is_named(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda _, text, **__: titles.append(text))
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda _, text, **__: titles.append(text))
    trials = [a_trial(n, 0.9 - n / 10, reports=0 if n in (0, 2) else 5) for n in range(4)]
    draw(a_study(objective=None), trials, tmp_path / "p.png")
    assert [title.partition("(")[0] for title in titles[:2]] == ["Best-2", "Best-4"]
    assert titles[2].endswith("2 trials with a curve, best first; without: Best-1, Best-3")


@pytest.mark.slow
def test_choices_that_are_lists_have_a_place_on_their_axis(tmp_path):
    study = a_study(
        objective=None, search_space={"layers": {"type": "categorical", "choices": [[64], [64, 64]], "when": None}}
    )
    trials = [a_trial(n, n / 10, params={"layers": [64] * (1 + n % 2)}) for n in range(6)]
    assert ink(drawn(study, trials, tmp_path / "p.png")) > 0.02
