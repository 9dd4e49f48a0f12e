"""A picture that compares trials has the panels, titles and lines that its study file asks for."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from hpo_service.cli.comparing_pictures import ensemble, grid, rounds, settings
from hpo_service.cli.figure import Figure
from hpo_service.cli.pictures import draw
from tests.cli.canned import a_round, a_study, a_trial

mpl.use("Agg")

DROPOUT = {"dropout": {"type": "categorical", "choices": [0.2, 0.0], "when": None}}
GRID = {
    "weight_init": {"type": "categorical", "choices": [1.0, 0.1, 0.01], "when": None},
    "batch_norm": {"type": "categorical", "choices": [True, False], "when": None},
}
TEST = {
    "state": "COMPLETE",
    "test_accuracy": 0.8,
    "members": [{"seed": 1, "test_accuracy": 0.7}, {"seed": 2, "test_accuracy": 0.76}],
}


def asked(kind, **fields):
    return Figure.model_validate({"kind": kind, **fields})


def of_dropout(number, value, dropout):
    return a_trial(number, value, reports=10, params={"dropout": dropout})


def shown(figure):
    return [panel for panel in figure.axes if panel.get_visible()]


def thick(panel):
    """(style, last value) of the lines that stand for a mean."""
    return [(line.get_linestyle(), round(line.get_ydata()[-1], 3)) for line in panel.lines if line.get_linewidth() > 1]


def test_settings_have_a_panel_each_in_the_order_of_the_choices_with_the_mean_of_their_trials():
    trials = [of_dropout(0, 0.4, 0.0), of_dropout(1, 0.8, 0.0), of_dropout(2, 0.5, 0.2)]

    panels = shown(settings(a_study(search_space=DROPOUT), trials, asked("settings")))

    assert [panel.get_title() for panel in panels] == ["dropout 0.2 (1 network)", "dropout 0 (2 networks)"]
    grown = 1 - np.exp(-2)  # what the canned curves reach in ten reports
    assert thick(panels[1]) == [("-", round(1.2 * 0.6 * grown, 3)), ("--", round(0.6 * grown, 3))]
    assert len(panels[1].lines) == 2 + 2 * 2  # two means, and two curves of each trial
    assert panels[0].get_shared_y_axes().joined(*panels)


def test_a_setting_that_nothing_varies_is_named_by_its_study():
    fixed = {"dropout": {"type": "categorical", "choices": [0.0], "when": None}}

    (panel,) = shown(settings(a_study(search_space=fixed), [of_dropout(0, 0.4, 0.0)], asked("settings")))

    assert panel.get_title() == "mnist (1 network)"


def test_a_grid_has_a_panel_for_each_choice_and_a_line_style_for_each_other_one():
    trials = [
        a_trial(n, 0.5, reports=5, params={"weight_init": scale, "batch_norm": norm})
        for n, (scale, norm) in enumerate((scale, norm) for scale in (1.0, 0.1, 0.01) for norm in (True, False))
    ]
    trials[1] = {**trials[1], "state": "FAIL", "reason": "diverged", "values": None, "reports": []}

    figure = grid(
        a_study(search_space=GRID), trials, asked("grid", panels="weight_init", lines="batch_norm", label="W")
    )

    panels = shown(figure)
    assert [panel.get_title() for panel in panels] == ["W:1.0", "W:0.1", "W:0.01"]
    assert [line.get_linestyle() for line in panels[1].lines] == ["-", "--"]
    assert [text.get_text() for text in panels[0].texts] == ["batch_norm false: diverged in epoch 1"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["batch_norm true", "batch_norm false"]


def test_rounds_show_the_box_of_each_and_the_mean_of_their_values():
    study = a_study(rounds=[a_round(0), a_round(1, learning_rate=(1e-3, 1e-2))])
    trials = [a_trial(n, 0.2 if n < 4 else 0.6 + n / 100, round=n // 4) for n in range(8)]

    plane, values = shown(rounds(study, trials, asked("rounds")))

    assert (plane.get_xscale(), plane.get_yscale()) == ("log", "log")
    boxes = [(box.get_x(), box.get_x() + box.get_width()) for box in plane.patches]
    assert boxes == [pytest.approx((1e-6, 1e-2)), pytest.approx((1e-3, 1e-2))]
    assert [text.get_text() for text in values.texts] == ["0.20", "0.66"]


def test_rounds_of_one_parameter_show_its_range_as_a_bar():
    def one(number, low):
        given = {"type": "float", "low": low, "high": 1.0, "log": False, "step": None, "when": None}
        return {"round": number, "search_space": {"x": given}, "first_trial": number, "trials": 1}

    study = a_study(search_space=one(0, 0.0)["search_space"], rounds=[one(0, 0.0), one(1, 0.5)])
    trials = [a_trial(n, 0.5, params={"x": 0.6}, round=n) for n in range(2)]

    bars, _ = shown(rounds(study, trials, asked("rounds")))

    assert bars.get_title() == "x: the range of each round, and its trials"
    assert len(bars.collections) == 2


def test_an_ensemble_stands_beside_each_of_its_networks():
    curves, tested = shown(ensemble(a_study(test=TEST), [a_trial(0, 0.7, reports=5)], asked("ensemble")))

    assert curves.get_title() == "1 network, each alone"
    assert [bar.get_height() for bar in tested.patches] == [0.7, 0.76]
    assert "their average probabilities: 0.800" in [text.get_text() for text in tested.get_legend().get_texts()]


def test_an_ensemble_that_was_not_tested_yet_shows_its_networks_alone():
    assert len(shown(ensemble(a_study(), [a_trial(0, 0.7, reports=5)], asked("ensemble")))) == 1


@pytest.mark.parametrize("trials", [[a_trial(0, 0.5, reports=3)], [a_trial(0, 0.5)]], ids=["curves", "none"])
def test_the_picture_of_a_study_is_of_the_kind_that_it_asks_for(trials, tmp_path):
    study = a_study(metadata={"figure": {"kind": "settings"}}, search_space=DROPOUT)

    draw(study, [{**trial, "params": {"dropout": 0.0}} for trial in trials], tmp_path / "p.png")

    with Image.open(tmp_path / "p.png") as picture:
        assert (np.asarray(picture.convert("RGB")) < 250).any(axis=2).mean() > 0.02
