"""The one door to Matplotlib: the curves of a study's best trials, or its values over trials and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_service.cli import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = Mapping[str, Any]

PANELS = 20  # as the article has them, 4 rows of 5
COLUMNS = 5
MOST_PARAMETERS = 11  # in the other picture, beside the panel of values over trials

_TRAINING, _VALIDATION, _BEST = "#9a6a1e", "#1f5fa8", "#b3261e"
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def draw(study: Json, trials: Sequence[Json], file: Path) -> None:
    """Write the picture that the trials (best first) allow: curves where they have reports."""
    import matplotlib as mpl

    mpl.use("Agg")
    reported = [trial for trial in trials if len(trial["reports"]) > 1]
    with mpl.rc_context(_STYLE):
        if len(study["directions"]) == 1 and reported:
            figure = _curves(study, reported[:PANELS])
        else:
            figure = _values_and_params(study, trials)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130, format=file.suffix.lstrip(".").lower())


def _figure(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height + 0.5), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **how).flat)


def _curves(study: Json, trials: Sequence[Json]) -> Figure:
    """One panel a trial, best first: validation dashed, training solid, all on the same axes."""
    from matplotlib.ticker import MaxNLocator

    columns = min(COLUMNS, len(trials))
    figure, panels = _figure(math.ceil(len(trials) / columns), columns, 2.5, 1.9, sharex=True, sharey=True)
    is_network = (study.get("objective") or {}).get("kind") == "neural_network"
    label = "validation accuracy" if is_network else "value"
    for place, (panel, trial) in enumerate(zip(panels, trials, strict=False), start=1):
        steps = [report["step"] for report in trial["reports"]]
        training = [_finite((report["metrics"] or {}).get("train_accuracy")) for report in trial["reports"]]
        if any(map(math.isfinite, training)):
            panel.plot(steps, training, color=_TRAINING, linewidth=1.0, label="training accuracy")
        panel.plot(
            steps,
            [_finite(report["value"]) for report in trial["reports"]],
            color=_VALIDATION,
            linewidth=1.4,
            linestyle="--",
            label=label,
        )
        panel.set_title(f"Best-{place}({'val_acc' if is_network else 'value'}:{_value(trial)})")
    for panel in panels[len(trials) :]:
        panel.set_visible(False)
    for panel in panels[len(trials) - columns : len(trials)]:
        panel.tick_params(labelbottom=True)  # the lowest of its column, where the last row is not full
    panels[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if is_network:
        panels[0].set_ylim(0, 1.02)
    figure.suptitle(f"{study['name']}: the best {wording.count(len(trials), 'trial')}, best first", fontsize=10)
    figure.supxlabel("epoch" if is_network else "step", fontsize=9)
    figure.supylabel("accuracy" if is_network else "value", fontsize=9)
    panels[0].legend(loc="best", fontsize=6.5, framealpha=0.8)
    return figure


def _value(trial: Json) -> str:
    value = _finite((trial["values"] or [None])[0])
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else wording.number(value)


def _values_and_params(study: Json, trials: Sequence[Json]) -> Figure:
    """The value over trial numbers, with the best so far, and against each parameter, on its scale."""
    with_value = sorted((trial for trial in trials if trial["values"]), key=lambda trial: trial["number"])
    parameters = list(study["search_space"].items())[:MOST_PARAMETERS]
    panels_needed = len(study["directions"]) + len(parameters)
    columns = min(4, panels_needed)
    figure, panels = _figure(math.ceil(panels_needed / columns), columns, 3.2, 2.6)
    for panel, (position, direction) in zip(panels, enumerate(study["directions"]), strict=False):
        _over_trials(panel, with_value, position, direction, len(study["directions"]))
    for panel, (name, parameter) in zip(panels[len(study["directions"]) :], parameters, strict=False):
        _against_parameter(panel, with_value, name, parameter)
    for panel in panels[panels_needed:]:
        panel.set_visible(False)
    figure.suptitle(f"{study['name']}: {wording.count(len(with_value), 'trial')} with a value", fontsize=10)
    return figure


def _over_trials(panel: Axes, trials: Sequence[Json], position: int, direction: str, directions: int) -> None:
    numbers = [trial["number"] for trial in trials]
    values = [_finite(trial["values"][position]) for trial in trials]
    panel.plot(numbers, values, ".", color=_VALIDATION, alpha=0.6, label="trial")
    if directions == 1:
        best = list(_best_so_far(values, max if direction == "maximize" else min))
        panel.step(numbers, best, where="post", color=_BEST, linewidth=1.3, label="best so far")
        panel.legend(loc="best", fontsize=6.5)
    panel.set_xlabel("trial")
    panel.set_ylabel(f"value ({direction})" if directions == 1 else f"value {position} ({direction})")


def _best_so_far(values: Sequence[float], better: Any) -> Iterator[float]:
    best = math.nan
    for value in values:
        best = value if math.isnan(best) else best if math.isnan(value) else better(best, value)
        yield best


def _against_parameter(panel: Axes, trials: Sequence[Json], name: str, parameter: Json) -> None:
    points = [
        (trial["params"][name], _finite(trial["values"][0]), trial["number"])
        for trial in trials
        if name in trial["params"]
    ]
    settings, values, numbers = zip(*points, strict=True) if points else ((), (), ())
    if parameter["type"] == "categorical":
        labels = [wording.number(choice) for choice in parameter["choices"]]
        settings = tuple(labels.index(wording.number(setting)) for setting in settings)
        panel.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
    elif parameter["log"]:
        panel.set_xscale("log")
    # later trials are darker: where a sampler has been looking lately
    panel.scatter(settings, values, c=numbers, cmap="Blues", vmin=-max(numbers, default=1) / 2, s=14, linewidths=0)
    panel.set_xlabel(name)
    panel.set_ylabel("value")


def _finite(value: object) -> float:
    """A number to draw; what is none, or infinite, leaves a gap."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if math.isfinite(value) else math.nan
