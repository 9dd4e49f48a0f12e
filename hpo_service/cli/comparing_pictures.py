"""Pictures that compare all trials of a study: by setting, on a grid, by round, one network beside several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hpo_service.cli import canvas, wording
from hpo_service.cli.canvas import BEST, DASHED, FULL, SOLID, TRAINING, VALIDATION, finite, short
from hpo_service.cli.confirmed_words import measure
from hpo_service.cli.expectations import same
from hpo_service.cli.figure import Figure as Asked
from hpo_service.domain.json_types import Json

MOST_SETTINGS = 20
ROUND_COLOURS = ("#9db7d5", "#1f5fa8", "#b3261e", "#9a6a1e", "#4b7a3a", "#6b4a8a")
LINE_STYLES = (("#1f5fa8", SOLID), ("#9a6a1e", DASHED), ("#b3261e", "-."), ("#4b7a3a", ":"))


def settings(study: Json, trials: Sequence[Json], asked: Asked) -> Figure:
    """A panel for each combination of params: its trials thin, their mean thick; training solid, validation dashed."""
    groups = _groups(study, trials)[:MOST_SETTINGS]
    columns = min(len(groups), 3 if len(groups) <= 9 else 5)
    width = {1: 5.4, 2: 4.4}.get(columns, 3.6)
    figure, panels = canvas.panels(math.ceil(len(groups) / columns), columns, width, 3.2, sharex=True, sharey=True)
    for panel, (title, group) in zip(panels, groups, strict=False):
        _curves_and_mean(panel, group, study)
        panel.set_title(title)
        panel.legend(loc="lower right", fontsize=7.5, framealpha=0.9)
    canvas.share_axes(panels, len(groups), columns)
    canvas.name_axes(figure, panels, study)
    figure.suptitle(f"{study['name']}: single {_net(study)}s thin, their mean thick", fontsize=10)
    return figure


def _groups(study: Json, trials: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    """The trials with curves by their params, in the order of the choices: (title, trials)."""
    with_curves = [trial for trial in trials if len(trial["reports"]) > 1]
    varied = [name for name, given in study["search_space"].items() if len(given.get("choices") or [0, 1]) > 1]
    groups: dict[tuple[str, ...], list[Json]] = {}
    for trial in with_curves:
        groups.setdefault(tuple(_written(trial["params"].get(name)) for name in varied), []).append(trial)

    def place(key: tuple[str, ...]) -> list[tuple[float, str]]:
        return [(_place(study["search_space"][name], word), word) for name, word in zip(varied, key, strict=True)]

    titled = []
    for key in sorted(groups, key=place):
        words = ", ".join(f"{name} {word}" for name, word in zip(varied, key, strict=True)) or study["name"]
        titled.append((f"{words} ({wording.count(len(groups[key]), _net(study))})", groups[key]))
    return titled


def _place(parameter: Json, word: str) -> float:
    written = [_written(choice) for choice in parameter.get("choices") or []]
    if word in written:
        return written.index(word)
    try:
        return float(word)
    except ValueError:
        return math.inf


def _curves_and_mean(panel: Axes, group: Sequence[Json], study: Json) -> None:
    for curve, label, colour, style in (
        (canvas.training, "training accuracy", TRAINING, SOLID),
        (canvas.validation, measure(study), VALIDATION, DASHED),
    ):
        if not any(map(math.isfinite, (value for trial in group for value in curve(trial)))):
            continue
        for trial in group if len(group) > 1 else ():
            panel.plot(canvas.steps(trial), curve(trial), color=colour, ls=style, linewidth=0.5, alpha=0.35)
        steps, means = zip(*_means([dict(zip(canvas.steps(t), curve(t), strict=True)) for t in group]), strict=True)
        panel.plot(steps, means, color=colour, ls=style, linewidth=1.8, label=f"{label}, {short(means[-1])} at the end")


def _means(curves: Sequence[Mapping[int, float]]) -> Iterator[tuple[int, float]]:
    for step in sorted(set().union(*curves)):
        values = [curve[step] for curve in curves if math.isfinite(curve.get(step, math.nan))]
        yield step, statistics.fmean(values) if values else math.nan


def grid(study: Json, trials: Sequence[Json], asked: Asked) -> Figure:
    """A panel for each choice of one parameter, in it the training curve for each choice of another."""
    assert asked.panels is not None
    assert asked.lines is not None
    of_panels = study["search_space"][asked.panels]["choices"]
    of_lines = study["search_space"][asked.lines]["choices"]
    columns = math.ceil(math.sqrt(len(of_panels)))
    figure, panels = canvas.panels(math.ceil(len(of_panels) / columns), columns, 2.6, 2.0, sharex=True, sharey=True)
    for panel, choice in zip(panels, of_panels, strict=False):
        panel.set_title(f"{asked.label or asked.panels}:{_written(choice)}")
        shown = [trial for trial in trials if same(trial["params"].get(asked.panels), choice)]
        for place, line in enumerate(of_lines):
            chosen = [trial for trial in shown if same(trial["params"].get(asked.lines), line)]
            _grid_line(panel, chosen, f"{asked.lines} {_written(line)}", *LINE_STYLES[place % len(LINE_STYLES)])
    canvas.share_axes(panels, len(of_panels), columns)
    canvas.name_axes(figure, panels, study, "training accuracy")
    lines = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.suptitle(f"{study['name']}: training accuracy, a panel for each {asked.panels}", fontsize=10)
    figure.legend(lines.values(), lines.keys(), loc="outside lower right", ncols=len(lines), fontsize=8)
    return figure


def _grid_line(panel: Axes, trials: Sequence[Json], label: str, colour: str, style: str) -> None:
    for trial in trials:
        curve = canvas.training(trial)
        if not any(map(math.isfinite, curve)):
            curve = canvas.validation(trial)
        panel.plot(canvas.steps(trial), curve, color=colour, ls=style, linewidth=1.5, label=label)
        if trial["reason"] == "diverged":
            words = f"{label}: diverged in epoch {len(trial['reports']) + 1}"
            panel.text(0.96, 0.06, words, transform=panel.transAxes, ha="right", fontsize=6.5, color=colour)


def rounds(study: Json, trials: Sequence[Json], asked: Asked) -> Figure:
    """Where each round searched, and what its trials reached."""
    numeric = [name for name, given in study["search_space"].items() if given["type"] != "categorical"]
    is_plane = len(numeric) == 2
    count = 1 if is_plane else len(numeric)
    columns = min(3, count + 1)
    figure, panels = canvas.panels(math.ceil((count + 1) / columns), columns, 4.6, 3.6)
    if is_plane:
        _boxes(panels[0], study, trials, *numeric)
    else:
        for panel, name in zip(panels, numeric, strict=False):
            _ranges(panel, study, trials, name)
    _values_of_rounds(panels[count], study, trials)
    canvas.hide(panels[count + 1 :])
    searched = wording.count(len(study["rounds"]), "round")
    figure.suptitle(f"{study['name']}: {searched}, from coarse to fine", fontsize=10)
    return figure


def _boxes(panel: Axes, study: Json, trials: Sequence[Json], across: str, up: str) -> None:
    """A rectangle for each round in the plane of two parameters, its trials as dots."""
    for name, letter in ((across, "x"), (up, "y")):
        if (given := study["search_space"][name])["log"]:
            canvas.log_scale(panel, letter, given["low"], given["high"])
    for one in study["rounds"]:
        colour = _colour(one["round"])
        dots = [trial["params"] for trial in trials if trial["round"] == one["round"]]
        panel.plot(
            [params[across] for params in dots], [params[up] for params in dots], ".", ms=4, color=colour, alpha=0.7
        )
        x, y = one["search_space"][across], one["search_space"][up]
        corner, width, height = (x["low"], y["low"]), x["high"] - x["low"], y["high"] - y["low"]
        label = f"round {one['round']}"
        panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.6, label=label))
    panel.autoscale_view()
    panel.set(xlabel=across, ylabel=up, title="the range of each round, and its trials")
    # below the axis: every corner of the plane is the corner of some box
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=6, fontsize=7.5, frameon=False)


def _ranges(panel: Axes, study: Json, trials: Sequence[Json], name: str) -> None:
    """A bar for each round over the values of one parameter, its trials as dots."""
    if (first := study["search_space"][name])["log"]:
        canvas.log_scale(panel, "y", first["low"], first["high"])
    for one in study["rounds"]:
        if name not in one["search_space"]:
            continue
        given, colour = one["search_space"][name], _colour(one["round"])
        panel.vlines(one["round"] - 0.3, given["low"], given["high"], color=colour, linewidth=4)
        values = [t["params"][name] for t in trials if t["round"] == one["round"] and name in t["params"]]
        panel.plot(_spread(one["round"], len(values)), values, ".", ms=4, color=colour, alpha=0.7)
    panel.set_title(f"{name}: the range of each round, and its trials")
    _whole_rounds(panel, study)


def _values_of_rounds(panel: Axes, study: Json, trials: Sequence[Json]) -> None:
    means: list[tuple[int, float]] = []
    for one in study["rounds"]:
        of_round = [trial for trial in trials if trial["round"] == one["round"] and trial["values"]]
        values = [value for trial in of_round if math.isfinite(value := finite(trial["values"][0]))]
        panel.plot(_spread(one["round"], len(values)), values, ".", ms=4, color=_colour(one["round"]), alpha=0.7)
        if values:
            means.append((one["round"], statistics.fmean(values)))
    panel.plot(*zip(*means, strict=True), "o-", color="black", linewidth=1.2, ms=4, label="mean of the round")
    for number, mean in means:
        panel.text(number - 0.24, mean, short(mean), ha="right", va="bottom")  # beside the dots
    if canvas.trains_a_network(study):
        panel.set_ylim(FULL)
    panel.set(ylabel=measure(study), title="what the trials of each round reached")
    panel.legend(loc="lower right", fontsize=7.5, framealpha=0.9)
    _whole_rounds(panel, study)


def _spread(number: int, amount: int) -> list[float]:
    """Spread positions on the x axis around a round's number, so that dots do not hide each other."""
    return [number - 0.2 + 0.4 * (7 * i % amount) / amount for i in range(amount)]


def _whole_rounds(panel: Axes, study: Json) -> None:
    numbers = [one["round"] for one in study["rounds"]]
    shown = numbers[:: math.ceil(len(numbers) / 12)]
    panel.set(xticks=shown, xlim=(numbers[0] - 0.6, numbers[-1] + 0.4), xlabel="round")


def _colour(number: int) -> str:
    return ROUND_COLOURS[number % len(ROUND_COLOURS)]


def ensemble(study: Json, trials: Sequence[Json], asked: Asked) -> Figure:
    """The curves of the single networks; on the test set each of an ensemble's networks, and their average."""
    test = study["test"] if (study["test"] or {}).get("state") == "COMPLETE" else None
    figure, panels = canvas.panels(1, 2 if test else 1, 4.8, 3.4)
    _curves_and_mean(panels[0], [trial for trial in trials if len(trial["reports"]) > 1], study)
    title = f"{wording.count(len(trials), _net(study))}, each alone"
    panels[0].set(title=title, ylim=FULL, xlabel="epoch", ylabel="accuracy")
    panels[0].legend(loc="lower right", fontsize=7.5, framealpha=0.9)
    if test:
        _members(panels[1], test)
    figure.suptitle(f"{study['name']}: single {_net(study)}s, and together", fontsize=10)
    return figure


def _members(panel: Axes, test: Json) -> None:
    alone = [member["test_accuracy"] for member in test["members"]]
    together, mean = test["test_accuracy"], statistics.fmean(alone)
    numbers = range(1, len(alone) + 1)
    panel.bar(numbers, alone, width=0.6, color=VALIDATION, alpha=0.45, label="one network")
    for number, value in zip(numbers, alone, strict=True) if len(alone) <= 10 else ():
        # at the foot of its bar, away from the two lines
        foot = (number, 0.02)
        panel.text(*foot, f"{value:.3f}", transform=panel.get_xaxis_transform(), ha="center", fontsize=7.5)
    panel.axhline(together, color=BEST, linewidth=1.8, label=f"their average probabilities: {together:.3f}")
    panel.axhline(mean, color=VALIDATION, ls=DASHED, linewidth=1.4, label=f"mean of the single ones: {mean:.3f}")
    lowest, highest = min(*alone, together), max(*alone, together)
    room = max(highest - lowest, 0.02)
    panel.set(
        title="on the test set, once",
        xlabel="network of the ensemble",
        xticks=list(numbers) if len(alone) <= 20 else [],
        ylabel="test accuracy (the axis does not begin at 0)",
        ylim=(max(0.0, lowest - 1.2 * room), min(1.0, highest + 1.4 * room)),
    )
    panel.legend(loc="upper left", fontsize=7.5, framealpha=0.9)


def _net(study: Json) -> str:
    return "network" if canvas.trains_a_network(study) else "trial"


def _written(value: Any) -> str:
    """As in the titles of panels: the float 1 as 1.0, all else as `wording.number` writes it."""
    return "1.0" if isinstance(value, float) and value == 1 else wording.number(value)
