"""Each kind of `hpo plot`: drawn from what a server answers, or refused in words where there is nothing to draw."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from PIL import Image

from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.pictures import save
from hpo_service.cli.plot import PlotKind
from hpo_service.cli.study_plots import PLOTS, PlotData
from tests.cli.canned import a_study, a_trial

SPACE = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True, "step": None, "when": None},
    "layers": {"type": "int", "low": 1, "high": 6, "log": False, "step": None, "when": None},
    "optimizer": {"type": "categorical", "choices": ["sgd", "adam", None], "when": None},
    "momentum": {
        "type": "float", "low": 0.0, "high": 1.0, "log": False, "step": None, "when": {"optimizer": ["sgd"]},
    },
}  # fmt: skip
IMPORTANCES = {"lr": 0.7, "layers": 0.2, "optimizer": 0.1, "momentum": None}


def searched(trials=60, directions=("maximize",)):
    """A study and its trials: conditional params, pruned, failed and running ones, a value that is not finite."""
    rng = random.Random(1)
    found = []
    for number in range(trials):
        params: dict[str, Any] = {
            "lr": 10 ** rng.uniform(-5, -1),
            "layers": rng.randint(1, 6),
            "optimizer": rng.choice(["sgd", "adam", None]),
        }
        if params["optimizer"] == "sgd":
            params["momentum"] = rng.random()
        value = 1 - (math.log10(params["lr"]) + 2.5) ** 2 / 8 - 0.03 * (params["layers"] - 3) ** 2
        state = "FAIL" if number % 11 == 5 else "PRUNED" if number % 5 == 3 else "COMPLETE"
        begin = f"2026-01-01T00:{number // 2:02d}:{number % 2 * 20:02d}.000000Z"
        end = f"2026-01-01T00:{number // 2 + 1:02d}:{number % 30:02d}.000000Z"
        found.append(
            a_trial(
                number,
                value,
                reports=6 if state == "PRUNED" else 12,
                state=state,
                params=params,
                values=None if state == "FAIL" else [value, params["layers"]][: len(directions)],
                started_at=begin,
                finished_at=end,
            )
        )
    found[0]["values"] = ["Infinity"] * len(directions)
    study = a_study(search_space=SPACE, directions=list(directions), objective=None)
    if len(directions) > 1:
        del study["best"]
        study["front"] = [{"number": number} for number in (2, 4, 6)]
    return study, found


def drawn(kind, seen, file):
    study, trials = seen
    of = PlotData.of(study, trials, IMPORTANCES, ())
    save(lambda: PLOTS[kind](of), file)
    with Image.open(file) as picture:
        pixels = picture.convert("L")
        return sum(pixels.histogram()[:250]) / (pixels.width * pixels.height)


def test_every_kind_that_the_command_offers_is_one_that_is_drawn():
    assert [kind.value for kind in PlotKind] == list(PLOTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in PLOTS if kind != "pareto"])
def test_each_kind_is_drawn_of_a_study_with_conditions_pruned_and_failed_trials(kind, tmp_path):
    assert drawn(kind, searched(), tmp_path / f"{kind}.png") > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(PLOTS))
def test_each_kind_is_drawn_of_a_study_with_two_directions(kind, tmp_path):
    assert drawn(kind, searched(directions=("maximize", "minimize")), tmp_path / f"{kind}-2.png") > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in PLOTS if kind != "pareto"])
def test_each_kind_is_drawn_of_two_trials_that_are_the_same(kind, tmp_path):
    study, trials = searched()
    twins = [{**trials[1], "number": number} for number in range(2)]
    assert drawn(kind, (study, twins), tmp_path / f"{kind}-twins.png") > 0.005


@pytest.mark.parametrize(
    ("kind", "parameters", "says"),
    [
        ("pareto", (), "one direction"),
        ("contour", ("lr",), "two numeric parameters"),
        ("contour", ("lr", "optimizer"), "two numeric parameters"),
    ],
)
def test_what_cannot_be_drawn_is_said(kind, parameters, says):
    study, trials = searched()
    with pytest.raises(CommandFailed, match=says):
        PLOTS[kind](PlotData.of(study, trials, IMPORTANCES, parameters))


@pytest.mark.parametrize("kind", ["history", "slice", "parallel", "contour", "edf", "curves", "timeline"])
def test_a_study_without_results_says_that_there_is_nothing_to_draw(kind):
    with pytest.raises(CommandFailed):
        PLOTS[kind](PlotData.of(searched()[0], [], IMPORTANCES, ()))


@pytest.mark.slow
def test_the_command_draws_over_http_and_names_the_file_itself(hpo, server, client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = client.create_study("plotted", search_space={"x": {"type": "float", "low": 0.0, "high": 1.0}})
    study.optimize(lambda trial: trial.params["x"], n_trials=4)

    for kind in ("history", "timeline"):
        assert hpo("plot", "plotted", "--kind", kind, "--server", server).out == f"wrote plotted-{kind}.png\n"
        assert (tmp_path / f"plotted-{kind}.png").stat().st_size > 5000
    assert json.loads(hpo("plot", "plotted", "--json", "--server", server).out) == {"picture": "plotted.png"}
    refused = hpo("plot", "plotted", "--kind", "slice", "--parameter", "y", "--server", server)
    assert refused.code == 2
    assert "it has x" in refused.err
    assert hpo("plot", "nobody-has-this-name", "--kind", "edf", "--server", server).code == 3
