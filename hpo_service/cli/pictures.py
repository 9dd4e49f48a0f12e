"""The picture of a study, of the kind its `metadata.figure` asks for. Imported late, as it needs Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpo_service.cli import canvas, wording
from hpo_service.cli.canvas import BEST, DASHED, TRAINING, VALIDATION, finite, short
from hpo_service.cli.comparing_pictures import ensemble, grid, rounds, settings
from hpo_service.cli.confirmed_words import measure
from hpo_service.cli.figure import Figure as Asked
from hpo_service.cli.figure import figure_of
from hpo_service.domain.json_types import Json
from hpo_service.printable import printable_values

PANELS = 20  # as the article has them, 4 rows of 5
COLUMNS = 5
MOST_PARAMETERS = 11  # in a picture of kind values, beside the panel of values over trials

# kinds that compare all trials of a study; the others show the best ones, or their values
COMPARING: Mapping[str, Callable[[Json, Sequence[Json], Asked], Figure]] = {
    "settings": settings,
    "grid": grid,
    "rounds": rounds,
    "ensemble": ensemble,
}


def draw(study: Json, trials: Sequence[Json], file: Path) -> None:
    """Write the picture that the study asks for and the trials (best first) allow."""
    save(lambda: _figure(printable_values(study), printable_values(list(trials))), file)


def save(make: Callable[[], Figure], file: Path) -> None:
    """Make the figure in the style of all pictures, and write it."""
    mpl.use("Agg")
    with mpl.rc_context(canvas.STYLE):
        figure = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130, format=file.suffix.lstrip(".").lower())


def compares(study: Json) -> bool:
    """Whether the picture needs all trials."""
    asked = figure_of(study)
    return asked is not None and asked.kind in (*COMPARING, "values")


def _figure(study: Json, trials: Sequence[Json]) -> Figure:
    asked = figure_of(study)
    reported = [trial for trial in trials if len(trial["reports"]) > 1]
    if asked is not None and asked.kind in COMPARING and (reported or asked.kind == "rounds"):
        return COMPARING[asked.kind](study, sorted(trials, key=lambda trial: trial["number"]), asked)
    if len(study["directions"]) == 1 and reported and (asked is None or asked.kind != "values"):
        return _curves(study, reported[:PANELS], _ranks(trials))
    return _values_and_params(study, trials)


def _ranks(trials: Sequence[Json]) -> dict[int, int]:
    """By trial number, the rank among all trials with a value, those without a curve included."""
    with_value = (trial["number"] for trial in trials if trial["values"] is not None)
    return {number: place for place, number in enumerate(with_value, start=1)}


def _curves(study: Json, trials: Sequence[Json], ranks: Mapping[int, int]) -> Figure:
    """One panel a trial, best first: validation dashed, training solid, all on the same axes."""
    columns = min(COLUMNS, len(trials))
    figure, panels = canvas.panels(math.ceil(len(trials) / columns), columns, 2.5, 1.9, sharex=True, sharey=True)
    is_network = canvas.trains_a_network(study)
    label = measure(study)
    for panel, trial in zip(panels, trials, strict=False):
        if any(map(math.isfinite, training := canvas.training(trial))):
            panel.plot(canvas.steps(trial), training, color=TRAINING, linewidth=1.0, label="training accuracy")
        panel.plot(
            canvas.steps(trial), canvas.validation(trial), color=VALIDATION, linewidth=1.4, ls=DASHED, label=label
        )
        which = f"Best-{ranks[trial['number']]}" if trial["number"] in ranks else f"trial {trial['number']} "
        panel.set_title(f"{which}({'val_acc' if is_network else 'value'}:{_value(trial)})")
    canvas.share_axes(panels, len(trials), columns)
    canvas.name_axes(figure, panels, study)
    figure.suptitle(_title(study["name"], trials, ranks), fontsize=10)
    panels[0].legend(loc="best", fontsize=6.5, framealpha=0.8)
    return figure


def _title(name: str, shown: Sequence[Json], ranks: Mapping[int, int]) -> str:
    title = f"{name}: the best {wording.count(len(shown), 'trial')}, best first"
    last = max((ranks.get(trial["number"], 0) for trial in shown), default=0)
    with_curve = {trial["number"] for trial in shown}
    without = [f"Best-{rank}" for number, rank in ranks.items() if rank <= last and number not in with_curve]
    if not without:
        return title
    more = f" and {len(without) - 3} more" if len(without) > 3 else ""
    named = ", ".join(without[:3]) + more
    return f"{name}: {wording.count(len(shown), 'trial')} with a curve, best first; without: {named}"


def _value(trial: Json) -> str:
    value = (trial["values"] or [None])[0]
    return short(value) if isinstance(value, float) else wording.number(value)


def _values_and_params(study: Json, trials: Sequence[Json]) -> Figure:
    """The value over trial numbers, with the best so far, and against each parameter, on its scale."""
    with_value = sorted((trial for trial in trials if trial["values"]), key=lambda trial: trial["number"])
    parameters = list(study["search_space"].items())[:MOST_PARAMETERS]
    panels_needed = len(study["directions"]) + len(parameters)
    columns = min(4, panels_needed)
    figure, panels = canvas.panels(math.ceil(panels_needed / columns), columns, 3.2, 2.6)
    for panel, (position, direction) in zip(panels, enumerate(study["directions"]), strict=False):
        over_trials(panel, with_value, position, direction, len(study["directions"]))
    for panel, (name, parameter) in zip(panels[len(study["directions"]) :], parameters, strict=False):
        against_parameter(panel, with_value, name, parameter)
    canvas.hide(panels[panels_needed:])
    figure.suptitle(f"{study['name']}: {wording.count(len(with_value), 'trial')} with a value", fontsize=10)
    return figure


def over_trials(panel: Axes, trials: Sequence[Json], position: int, direction: str, directions: int) -> None:
    numbers = [trial["number"] for trial in trials]
    values = [finite(trial["values"][position]) for trial in trials]
    panel.plot(numbers, values, ".", color=VALIDATION, alpha=0.6, label="trial")
    if directions == 1:
        best = list(_best_so_far(values, max if direction == "maximize" else min))
        panel.step(numbers, best, where="post", color=BEST, linewidth=1.3, label="best so far")
        panel.legend(loc="best", fontsize=6.5)
    panel.set(xlabel="trial", ylabel=f"value ({direction})" if directions == 1 else f"value {position} ({direction})")


def _best_so_far(values: Sequence[float], better: Any) -> Iterator[float]:
    best = math.nan
    for value in values:
        best = value if math.isnan(best) else best if math.isnan(value) else better(best, value)
        yield best


def against_parameter(panel: Axes, trials: Sequence[Json], name: str, parameter: Json) -> None:
    having = [trial for trial in trials if name in trial["params"]]
    given = [trial["params"][name] for trial in having]
    settings = [finite(setting) if isinstance(setting, float) else setting for setting in given]
    values, numbers = [finite(trial["values"][0]) for trial in having], [trial["number"] for trial in having]
    if parameter["type"] == "categorical":
        labels = [wording.number(choice) for choice in parameter["choices"]]
        settings = [labels.index(wording.number(setting)) for setting in settings]
        panel.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
        panel.set_xlim(-0.5, len(labels) - 0.5)
    elif parameter["log"]:
        canvas.log_scale(panel, "x", parameter["low"], parameter["high"])
    # later trials are darker: where a sampler has been looking lately
    panel.scatter(settings, values, c=numbers, cmap="Blues", vmin=-max(numbers, default=1) / 2, s=14, linewidths=0)
    panel.set(xlabel=name, ylabel="value")
