"""What all pictures share: colours, axes, how a curve is drawn and a value written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hpo_service.cli import wording
from hpo_service.domain import neural_network
from hpo_service.domain.json_types import Json

TRAINING, VALIDATION, BEST = "#9a6a1e", "#1f5fa8", "#b3261e"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "text.parse_math": False,  # $ in a name or a choice is a dollar sign
}
SOLID, DASHED = "-", "--"
FULL = (0, 1.02)  # an axis of accuracies
FURTHEST = 1e300  # Matplotlib adds and multiplies the ends of an axis, and the results have to fit into a double


def panels(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, each width x height inches; `how` goes to Figure.subplots."""
    figure = Figure(figsize=(columns * width, rows * height + 0.5), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **how).flat)


def trains_a_network(study: Json) -> bool:
    return (study.get("objective") or {}).get("kind") == neural_network.KIND


def name_axes(figure: Figure, panels: Sequence[Axes], study: Json, of_network: str = "accuracy") -> None:
    """Label the axes that all curves share: epoch and of_network for the network, else step and value."""
    is_network = trains_a_network(study)
    if is_network:
        panels[0].set_ylim(FULL)
    figure.supxlabel("epoch" if is_network else "step", fontsize=9)
    figure.supylabel(of_network if is_network else "value", fontsize=9)


def steps(trial: Json) -> list[int]:
    return [report["step"] for report in trial["reports"]]


def validation(trial: Json) -> list[float]:
    return [finite(report["value"]) for report in trial["reports"]]


def training(trial: Json) -> list[float]:
    return [finite((report["metrics"] or {}).get("train_accuracy")) for report in trial["reports"]]


def hide(empty: Sequence[Axes]) -> None:
    for panel in empty:
        panel.set_visible(False)


def share_axes(all_panels: Sequence[Axes], used: int, columns: int) -> None:
    """Hide the panels that stay empty; the lowest of each column has the numbers of the x axis."""
    hide(all_panels[used:])
    for panel in all_panels[max(0, used - columns) : used]:
        panel.tick_params(labelbottom=True)
    all_panels[0].xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def finite(value: object) -> float:
    """A number to draw: NaN, a gap, for what is infinite or no number; clipped to what an axis can span."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return min(max(float(value), -FURTHEST), FURTHEST)


def short(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else wording.number(value)


def log_scale(panel: Axes, letter: str, low: float, high: float) -> None:
    """Make x or y logarithmic, with plain numbers on it: Matplotlib's own labels need parse_math."""
    getattr(panel, f"set_{letter}scale")("log")
    axis = getattr(panel, f"{letter}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: wording.number(value)))
    axis.set_minor_formatter(NullFormatter())
