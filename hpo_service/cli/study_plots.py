"""The pictures of `hpo plot --kind`: each says one thing about the trials of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from hpo_service.cli import canvas, wording
from hpo_service.cli.canvas import BEST, FULL, TRAINING, VALIDATION, finite
from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.pictures import against_parameter, over_trials
from hpo_service.domain.json_types import Json
from hpo_service.printable import printable_values

MOST_AXES = 12  # parameters in one picture
MOST_CURVES = 500
SCALE = "viridis_r"  # of values: dark is good
OF_THE_BEST = "#111111"
Points = tuple[Sequence[float], Sequence[float]]  # their x, and their y
STATE_COLOURS = {"COMPLETE": VALIDATION, "PRUNED": "#c8a15a", "FAIL": BEST, "RUNNING": "#4b7a3a"}


@dataclass(frozen=True)
class PlotData:
    """What a picture is made of; parameters: those to draw, the most important ones first where that is known."""

    study: Json
    trials: Sequence[Json]
    importances: Mapping[str, float | None]
    parameters: Sequence[str]

    @classmethod
    def of(
        cls, study: Json, trials: Sequence[Json], importances: Mapping[str, float | None], asked: Sequence[str]
    ) -> Self:
        parameters = list(asked) or sorted(study["search_space"], key=lambda name: -(importances.get(name) or 0.0))
        return cls(printable_values(study), printable_values(list(trials)), importances, parameters[:MOST_AXES])

    @property
    def title(self) -> str:
        return f"{self.study['name']}: {wording.count(len(self.trials), 'trial')}"

    @property
    def value(self) -> str:
        """What the axis of the values is called; with several directions it is the first one's."""
        directions = self.study["directions"]
        return f"value ({directions[0]})" if len(directions) == 1 else f"value 0 ({directions[0]})"

    @property
    def valued(self) -> list[Json]:
        """The COMPLETE trials with a finite value; raise CommandFailed where there is none."""
        found = [t for t in self.trials if t["state"] == "COMPLETE" and math.isfinite(finite(t["values"][0]))]
        if not found:
            raise CommandFailed(f"{self.study['name']} has no trial with a result to draw yet")
        return found

    def parameter(self, name: str) -> Json:
        found: Json = self.study["search_space"][name]
        return found


def history(drawn: PlotData) -> Figure:
    """Each trial's value, and the best so far; a panel for each direction."""
    directions, trials = drawn.study["directions"], drawn.valued
    figure, panels = canvas.panels(len(directions), 1, 7.0, 3.6)
    for place, (panel, direction) in enumerate(zip(panels, directions, strict=True)):
        over_trials(panel, trials, place, direction, len(directions))
    figure.suptitle(drawn.title, fontsize=10)
    return figure


def importance(drawn: PlotData) -> Figure:
    """What share of the difference between trials each parameter makes."""
    shares = sorted(((share or 0.0, name) for name, share in drawn.importances.items()))
    figure, (panel,) = canvas.panels(1, 1, 6.0, 0.8 + 0.32 * len(shares))
    bars = panel.barh([name for _, name in shares], [share for share, _ in shares], color=VALIDATION)
    never = {name for name, share in drawn.importances.items() if share is None}
    panel.bar_label(bars, ["never varied" if name in never else f"{share:.0%}" for share, name in shares], padding=3)
    most = max(0.1, *(share for share, _ in shares))
    panel.set(xlim=(0, 1.12 * most), xlabel="share of the difference between trials")
    panel.grid(axis="y", visible=False)
    figure.suptitle(drawn.title, fontsize=10)
    return figure


def slices(drawn: PlotData) -> Figure:
    """The values over each parameter."""
    columns = min(4, len(drawn.parameters))
    trials = drawn.valued
    figure, panels = canvas.panels(math.ceil(len(drawn.parameters) / columns), columns, 3.2, 2.8, sharey=True)
    for panel, name in zip(panels, drawn.parameters, strict=False):
        against_parameter(panel, trials, name, drawn.parameter(name))
    canvas.hide(panels[len(drawn.parameters) :])
    figure.suptitle(f"{drawn.title}; later ones darker; {drawn.value}", fontsize=10)
    return figure


def parallel(drawn: PlotData) -> Figure:
    """A line a trial through its value and its params; dark ones are the best. A param it lacks is left out."""
    names, trials = drawn.parameters, drawn.valued
    figure, (panel,) = canvas.panels(1, 1, max(6.0, 1.5 * (len(names) + 1)), 4.2)
    values = [finite(trial["values"][0]) for trial in trials]
    scale = _Axis.of_numbers(values)
    axes = [scale, *(_Axis.of_parameter(drawn.parameter(name), trials, name) for name in names)]
    is_better_high = drawn.study["directions"][0] == "maximize"
    for trial, value in sorted(zip(trials, values, strict=True), key=lambda pair: pair[1], reverse=not is_better_high):
        heights = [scale.height(value)]
        heights += [axis.height(trial["params"].get(name)) for axis, name in zip(axes[1:], names, strict=True)]
        goodness = heights[0] if is_better_high else 1 - heights[0]
        colour, alpha = colormaps[SCALE](goodness), 0.25 + 0.65 * goodness
        panel.plot(range(len(heights)), heights, color=colour, alpha=alpha, linewidth=1.0)
    for place, axis in enumerate(axes):
        axis.draw(panel, place)
    panel.set_xticks(range(len(axes)), [drawn.value, *names], rotation=20 if len(names) > 5 else 0)
    panel.set(yticks=[], xlim=(-0.1, len(axes) - 0.5))
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    figure.suptitle(f"{drawn.title}; dark is good", fontsize=10)
    return figure


@dataclass(frozen=True)
class _Axis:
    """A vertical axis of `parallel`: the height of a value from 0 to 1, and labels for some heights."""

    place: Callable[[Any], float]
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def of_numbers(cls, values: Sequence[float], *, log: bool = False) -> Self:
        into = math.log if log else float
        low, high = min(values, default=0.0), max(values, default=1.0)
        first, span = into(low), (into(high) - into(low)) or 1.0
        inside = (math.exp(first + span / 2) if log else low / 2 + high / 2) if high > low else low
        named = dict.fromkeys((low, inside, high))
        return cls(
            lambda value: (into(value) - first) / span,
            [((into(value) - first) / span, wording.number(value)) for value in named],
        )

    @classmethod
    def of_parameter(cls, parameter: Json, trials: Sequence[Json], name: str) -> Self:
        if parameter["type"] != "categorical":
            numbers = [trial["params"][name] for trial in trials if name in trial["params"]]
            return cls.of_numbers(numbers, log=bool(parameter["log"]))
        words = [wording.number(choice) for choice in parameter["choices"]]
        last = max(1, len(words) - 1)
        return cls(
            lambda value: words.index(wording.number(value)) / last,
            [(place / last, word) for place, word in enumerate(words)],
        )

    def height(self, value: Any) -> float:
        """nan for a parameter that a trial does not have, which breaks its line."""
        if value is None and "null" not in {word for _, word in self.ticks}:
            return math.nan
        return self.place(value)

    def draw(self, panel: Axes, at: int) -> None:
        panel.axvline(at, color="#666", linewidth=0.8)
        for height, word in self.ticks:
            panel.text(
                at + 0.04, height, word, fontsize=7, va="center", bbox={"facecolor": "white", "alpha": 0.7, "lw": 0}
            )


def contour(drawn: PlotData) -> Figure:
    """The value over the two numeric parameters that matter most, or are named, interpolated between the trials."""
    numeric = [name for name in drawn.parameters if drawn.parameter(name)["type"] != "categorical"]
    if len(numeric) < 2:
        raise CommandFailed(
            f"a contour needs two numeric parameters, and {drawn.study['name']} has {len(numeric)} to draw"
        )
    one, other = numeric[:2]
    trials = [trial for trial in drawn.valued if one in trial["params"] and other in trial["params"]]
    figure, (panel,) = canvas.panels(1, 1, 6.4, 4.8)
    across, up = ([trial["params"][name] for trial in trials] for name in (one, other))
    values = [finite(trial["values"][0]) for trial in trials]
    scale = SCALE if drawn.study["directions"][0] == "maximize" else SCALE.removesuffix("_r")
    seen = _scaled(across, drawn.parameter(one)), _scaled(up, drawn.parameter(other))
    _fill(panel, seen, (across, up), values, scale)
    dots = panel.scatter(across, up, c=values, cmap=scale, edgecolors="white", linewidths=0.6, s=26, zorder=3)
    figure.colorbar(dots, label=drawn.value)
    panel.set(xlabel=one, ylabel=other)
    for letter, name in (("x", one), ("y", other)):
        if (parameter := drawn.parameter(name))["log"]:
            canvas.log_scale(panel, letter, parameter["low"], parameter["high"])
    figure.suptitle(f"{drawn.title}; dots are trials, what lies between is interpolated", fontsize=10)
    return figure


def _scaled(values: Sequence[float], parameter: Json) -> list[float]:
    """The values from 0 to 1 along their axis, logarithmic or not: the triangulation is made in these."""
    into = math.log if parameter["log"] else float
    first, span = into(parameter["low"]), into(parameter["high"]) - into(parameter["low"])
    return [(into(value) - first) / (span or 1.0) for value in values]


def _fill(panel: Axes, seen: Points, places: Points, values: Sequence[float], scale: str) -> None:
    """Fill the contours; nothing if the points span no area. seen: `places` after `_scaled`, to triangulate."""
    try:
        triangles = Triangulation(*places, triangles=Triangulation(*seen).triangles)
        panel.tricontourf(triangles, values, levels=14, cmap=scale, alpha=0.55)
    except (ValueError, RuntimeError):
        return


def pareto(drawn: PlotData) -> Figure:
    """Two directions against each other; the trials that no other beats are joined."""
    directions = drawn.study["directions"]
    if len(directions) < 2:
        raise CommandFailed(f"{drawn.study['name']} has one direction: a front needs two; try --kind history")
    figure, (panel,) = canvas.panels(1, 1, 6.0, 4.6)
    points = {trial["number"]: [finite(value) for value in trial["values"][:2]] for trial in drawn.valued}
    front = sorted(points[best["number"]] for best in drawn.study["front"] if best["number"] in points)
    across, up = zip(*points.values(), strict=True)
    panel.scatter(across, up, s=16, color=VALIDATION, alpha=0.5, label="trial")
    if front:
        label = "beaten by no other"
        panel.plot(
            *zip(*front, strict=True), "o-" if len(directions) == 2 else "o", color=BEST, ms=5, lw=1.0, label=label
        )
    panel.set(xlabel=f"value 0 ({directions[0]})", ylabel=f"value 1 ({directions[1]})")
    panel.legend(loc="best", fontsize=7.5)
    figure.suptitle(drawn.title, fontsize=10)
    return figure


def curves(drawn: PlotData) -> Figure:
    """What each trial has reported, over its steps; the best one is thick."""
    reported = [trial for trial in drawn.trials if trial["reports"]]
    if not reported:
        raise CommandFailed(f"{drawn.study['name']} has no reports to draw: its trials only tell a result")
    figure, (panel,) = canvas.panels(1, 1, 7.0, 4.4)
    best = (drawn.study.get("best") or {}).get("number")
    for trial in reported[-MOST_CURVES:]:
        is_best = trial["number"] == best
        panel.plot(
            canvas.steps(trial),
            canvas.validation(trial),
            color=OF_THE_BEST if is_best else STATE_COLOURS.get(trial["state"], "#888"),
            linewidth=2.0 if is_best else 0.8,
            alpha=1.0 if is_best else 0.45,
            zorder=3 if is_best else 2,
            marker="." if len(trial["reports"]) == 1 else None,
        )
    _legend(panel, {trial["state"] for trial in reported}, best=best)
    panel.set(xlabel="step", ylabel="value reported")
    figure.suptitle(f"{drawn.study['name']}: {wording.count(len(reported), 'trial')} with reports", fontsize=10)
    return figure


def _legend(panel: Axes, states: set[str], best: int | None = None) -> None:
    """The states that are drawn, in the order in which they are listed everywhere."""
    for state in (state for state in STATE_COLOURS if state in states):
        panel.plot([], [], color=STATE_COLOURS[state], linewidth=3, label=state)
    if best is not None:
        panel.plot([], [], color=OF_THE_BEST, linewidth=2, label=f"best: trial {best}")
    panel.legend(loc="best", fontsize=7.5)


def edf(drawn: PlotData) -> Figure:
    """Which share of the trials is at or below a value."""
    values = sorted(finite(trial["values"][0]) for trial in drawn.valued)
    figure, (panel,) = canvas.panels(1, 1, 6.0, 4.0)
    shares = [place / len(values) for place in range(1, len(values) + 1)]
    panel.step([values[0], *values], [0.0, *shares], where="post", color=VALIDATION, linewidth=1.6)
    panel.set(xlabel=drawn.value, ylabel="share of the trials at or below", ylim=FULL)
    figure.suptitle(f"{drawn.study['name']}: {wording.count(len(values), 'trial')} with a value", fontsize=10)
    return figure


def timeline(drawn: PlotData) -> Figure:
    """When each trial ran: a bar from its start to its end, a row a trial."""
    started = [trial for trial in drawn.trials if trial["started_at"]]
    if not started:
        raise CommandFailed(f"no trial of {drawn.study['name']} has been given out yet")
    begins = [_seconds(trial["started_at"]) for trial in started]
    zero = min(begins)
    last = max(begins + [_seconds(trial["finished_at"]) for trial in started if trial["finished_at"]])
    unit, words = _unit(last - zero)
    figure, (panel,) = canvas.panels(1, 1, 7.5, min(9.0, 1.5 + 0.12 * len(started)))
    for trial, begin in zip(started, begins, strict=True):
        end = _seconds(trial["finished_at"]) if trial["finished_at"] else last
        colour = STATE_COLOURS.get(trial["state"], TRAINING)
        panel.barh(trial["number"], (end - begin) / unit, left=(begin - zero) / unit, height=0.8, color=colour)
    _legend(panel, {trial["state"] for trial in started})
    panel.invert_yaxis()
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel=f"{words} since {started[begins.index(zero)]['started_at'][:19]}Z", ylabel="trial")
    figure.suptitle(drawn.title, fontsize=10)
    return figure


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _unit(seconds: float) -> tuple[float, str]:
    return next(
        (unit for unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")) if seconds > 2 * unit[0]),
        (1.0, "seconds"),
    )


PLOTS: Mapping[str, Callable[[PlotData], Figure]] = {
    "history": history,
    "importance": importance,
    "slice": slices,
    "parallel": parallel,
    "contour": contour,
    "pareto": pareto,
    "curves": curves,
    "edf": edf,
    "timeline": timeline,
}
