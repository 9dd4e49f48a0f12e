"""What the service's benchmark has measured: kept as JSON, shown as tables, drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import growing_study
import reads_beside
import servers_together
import side_by_side
from contestants import IN_ONE_CALL
from measured_rounds import Row

from hpo_service.cli import canvas

Cell = Callable[[Row, Sequence[Row]], str]


@dataclass(frozen=True)
class Table:
    """columns: by heading, what stands in a row, given all rows of its run and part."""

    title: str
    columns: Mapping[str, Cell]

    def lines(self, rows: Sequence[Row]) -> list[str]:
        if not rows:
            return []
        head = ["| " + " | ".join(self.columns) + " |", "|---" * len(self.columns) + "|"]
        return head + ["| " + " | ".join(cell(row, rows) for cell in self.columns.values()) + " |" for row in rows]


def shown(value: float) -> str:
    """Three digits that count; nothing where there is nothing to see."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(field: str, times: float = 1.0) -> Cell:
    return lambda row, rows: shown(row.median(field) * times)


def ratio(field: str, base: Callable[[Row, Row], bool], *, inverse: bool = False) -> Cell:
    """This row's figure over that of the row of the same run that `base` picks; inverse: the other way round."""

    def cell(row: Row, rows: Sequence[Row]) -> str:
        for other in rows:
            if other.run == row.run and base(row, other):
                above, below = (other, row) if inverse else (row, other)
                divisor = below.median(field)
                return shown(above.median(field) / divisor if divisor else math.nan)
        return ""

    return cell


def _same(row: Row, other: Row, *fields: str) -> bool:
    return all(getattr(row, field) == getattr(other, field) for field in fields)


def _beside(contestant: str) -> Callable[[Row, Row], bool]:
    return lambda row, other: other.contestant == contestant and _same(row, other, "load", "history", "setting")


def _smallest(row: Row, other: Row) -> bool:
    return _same(row, other, "contestant", "load", "setting")  # rows come in the order of their size


def _alone(row: Row, other: Row) -> bool:
    return other.setting == reads_beside.ALONE and _same(row, other, "contestant", "history")


def _one_server(row: Row, other: Row) -> bool:
    return other.contestant == "one server" and _same(row, other, "load", "setting")


def _history(row: Row, rows: Sequence[Row]) -> str:
    return f"{row.history:,}"


def _readings(row: Row, rows: Sequence[Row]) -> str:
    """How many of each were done in a round, and how long one took."""
    kinds = [field.removesuffix("_readings") for field in row.rounds[0] if field.endswith("_readings")]
    return ", ".join(
        f"{kind} {shown(row.median(f'{kind}_readings'))} × {shown(row.median(f'{kind}_seconds'))} s" for kind in kinds
    )


CALLS: Mapping[str, Cell] = {
    "trials/s": median("trials_per_second"),
    "ask p50 ms": median("ask_p50"),
    "ask p99 ms": median("ask_p99"),
    "tell p50 ms": median("tell_p50"),
    "tell p99 ms": median("tell_p99"),
}
SERVER: Mapping[str, Cell] = {"server CPU µs/trial": median("server_cpu"), "server MiB": median("server_mib")}

TABLES: Mapping[str, Table] = {
    side_by_side.PART: Table(
        "Side by side",
        {
            "load": lambda row, rows: row.load,
            "trials before": _history,
            "": lambda row, rows: row.contestant,
            **CALLS,
            "SQLite service ÷ this": ratio("trials_per_second", _beside("service sqlite"), inverse=True),
            "in one call": ratio("trials_per_second", _beside(f"service sqlite{IN_ONE_CALL}"), inverse=True),
            "PostgreSQL service ÷ this": ratio("trials_per_second", _beside("service postgresql"), inverse=True),
            "in one call ": ratio("trials_per_second", _beside(f"service postgresql{IN_ONE_CALL}"), inverse=True),
            **SERVER,
        },
    ),
    side_by_side.CROWD: Table(
        "Many workers",
        {
            "load": lambda row, rows: row.load,
            "trials before": _history,
            "": lambda row, rows: f"{row.contestant}, {row.setting}",
            **CALLS,
            **SERVER,
        },
    ),
    growing_study.PART: Table(
        "The same calls in a growing study",
        {
            "load": lambda row, rows: row.load,
            "": lambda row, rows: row.contestant,
            "trials before": _history,
            "trials/s": median("trials_per_second"),
            "time a trial ÷ smallest": ratio("trials_per_second", _smallest, inverse=True),
            "ask p50 ms": median("ask_p50"),
            "÷ smallest": ratio("ask_p50", _smallest),
            "ask p99 ms": median("ask_p99"),
            "÷ smallest ": ratio("ask_p99", _smallest),
            "server CPU µs/trial": median("server_cpu"),
            "÷ smallest  ": ratio("server_cpu", _smallest),
        },
    ),
    growing_study.RESTART: Table(
        "Memory and restart",
        {
            "load": lambda row, rows: row.load,
            "": lambda row, rows: row.contestant,
            "trials": _history,
            "MiB, empty study": median("empty_mib"),
            "MiB, having taken them": median("mib"),
            "bytes a trial": median("bytes_a_trial"),
            "MiB, restarted": median("restarted_mib"),
            "bytes a trial ": median("restarted_bytes_a_trial"),
            "s to /readyz": median("ready"),
            "s to the first ask": median("first_ask"),
        },
    ),
    reads_beside.PART: Table(
        "Reads beside the workers",
        {
            "": lambda row, rows: row.contestant,
            "trials before": _history,
            "read meanwhile": lambda row, rows: row.setting,
            "trials/s": median("trials_per_second"),
            "ask p50 ms": median("ask_p50"),
            "ask p99 ms": median("ask_p99"),
            "÷ alone": ratio("ask_p99", _alone),
            "tell p99 ms": median("tell_p99"),
            "÷ alone ": ratio("tell_p99", _alone),
            "readings a round": _readings,
        },
    ),
    servers_together.PART: Table(
        "Two servers on one PostgreSQL",
        {
            "load": lambda row, rows: row.load,
            "studies": lambda row, rows: row.setting,
            "": lambda row, rows: row.contestant,
            "trials/s": median("trials_per_second"),
            "÷ one": ratio("trials_per_second", _one_server),
            "ask p50 ms": median("ask_p50"),
            "ask p99 ms": median("ask_p99"),
            "CPU µs/trial: servers": median("server_cpu"),
            "PostgreSQL": median("database_cpu"),
            "workers": median("worker_cpu"),
            "busiest server, % of a core": median("busiest_server", 100),
            "machine idle, %": median("idle", 100),
        },
    ),
}


def table(part: str, rows: Sequence[Row]) -> str:
    """A part's rows in the order in which they were measured, as Markdown; nothing when there are none."""
    return "\n".join(TABLES[part].lines([row for row in rows if row.part == part]))


def all_tables(rows: Sequence[Row]) -> str:
    found = {part: table(part, rows) for part in TABLES}
    return "\n\n".join(f"## {TABLES[part].title}\n\n{lines}" for part, lines in found.items() if lines)


def kept(file: Path) -> list[Row]:
    """The rows of earlier runs; none when there is no such file."""
    if not file.exists():
        return []
    return [Row.from_json(row) for row in json.loads(file.read_text(encoding="utf-8"))]


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The new rows in the places of those that measured the same before."""
    places = {row.place: row for row in old}
    return list((places | {row.place: row for row in new}).values())


def keep(rows: Sequence[Row], file: Path) -> None:
    file.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n", encoding="utf-8")


# by contestant: ours thick
COLOURS: Mapping[str, str] = {
    "service sqlite": "#1f5fa8",
    f"service sqlite{IN_ONE_CALL}": "#0b2a5b",
    "service postgresql": "#b3261e",
    f"service postgresql{IN_ONE_CALL}": "#6d0f0a",
    "optuna sqlite": "#6baed6",
    "optuna postgresql": "#e8918b",
    "optuna grpc": "#c77ab3",
    "optuna journal": "#9a6a1e",
    "optuna memory": "#4d8f4a",
    "vizier (random search)": "#7f7f7f",
}
PANELS = {"trials_per_second": "trials/s", "ask_p50": "ask p50, ms"}


def draw(rows: Sequence[Row], file: Path) -> None:
    """Trials a second and the median ask over the trials before, a line a contestant, a row of panels a load."""
    import matplotlib as mpl

    mpl.use("Agg")
    compared = [row for row in rows if row.part == side_by_side.PART]
    loads = list(dict.fromkeys(row.load for row in compared))
    sizes = sorted({row.history for row in compared})
    with mpl.rc_context(canvas.STYLE):
        figure, panels = canvas.panels(len(loads), len(PANELS), 4.2, 2.8)
        for panel, (load, field) in zip(panels, ((load, field) for load in loads for field in PANELS), strict=True):
            for contestant, colour in COLOURS.items():
                points = sorted(
                    (sizes.index(row.history), row.median(field))
                    for row in compared
                    if row.load == load and row.contestant == contestant
                )
                ours = contestant.startswith("service")
                if points:
                    style: dict[str, Any] = {"linewidth": 2.2 if ours else 1.1, "color": colour, "label": contestant}
                    panel.plot(*zip(*points, strict=True), marker="o" if ours else ".", **style)
            panel.set_yscale("log")
            panel.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
            panel.set_title(f"{load}: {PANELS[field]}")
        figure.supxlabel("trials before", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=7)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110, format=file.suffix.lstrip(".").lower())
