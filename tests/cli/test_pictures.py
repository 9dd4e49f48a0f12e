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
