"""How numbers, ranges, durations and study states are written for people."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo_service.domain.json_types import Json
from hpo_service.domain.wording_of_numbers import count as count

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
DONE = frozenset({"COMPLETED", "STOPPED", "CANCELLED"})  # nothing more happens to a study by itself


def hpo() -> str:
    """How this command is typed again: `hpo` where the shell finds it, else the path by which it was called."""
    called = Path(sys.argv[0])
    if called.name != "hpo" or shutil.which("hpo") is not None:
        return "hpo"
    inside = called.resolve().is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(called) if inside else str(called))


def hpo_run(file: Path | str) -> str:
    return f"{hpo()} run {shlex.quote(str(file))}"


def number(value: Any, digits: int = 3) -> str:
    """1e-6 rather than 1e-06, 0.01 rather than 1e-2; anything that is no number as JSON writes it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) and abs(value) < 10_000_000:
        return str(value)
    return re.sub(r"e([+-])0*", lambda sign: "e-" if sign[1] == "-" else "e", f"{value:.{digits}g}")


def parameter_range(parameter: Mapping[str, Any]) -> str:
    """A range or the choices of a parameter of the search space, as the contract writes it."""
    if parameter["type"] == "categorical":
        return ", ".join(number(choice) for choice in parameter["choices"])
    return f"{number(parameter['low'])} … {number(parameter['high'])}"


def decades(parameter: Mapping[str, Any]) -> float | None:
    """How many powers of ten a logarithmic range spans; None for other parameters."""
    if parameter["type"] == "categorical" or not parameter.get("log"):
        return None
    return math.log10(parameter["high"] / parameter["low"])


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def finished(study: Mapping[str, Any]) -> int:
    return sum(study["counts"][state] for state in FINISHED)


def of_the_search(trials: Iterable[Json]) -> Iterator[Json]:
    """The trials without the replicates that confirm others."""
    return (trial for trial in trials if trial.get("replicate_of") is None)


def goal(study: Mapping[str, Any]) -> str:
    """maximized or minimized; with several directions a word for each."""
    return ", ".join(f"{direction}d" for direction in study["directions"])


def progress(study: Mapping[str, Any]) -> str:
    """How many trials have finished, and how many of these have failed."""
    limit, failed = study["limits"]["trials"], study["counts"]["FAIL"]
    of_limit = f" of {limit}" if limit is not None else ""
    return f"{finished(study)}{of_limit} trials finished" + (f", {failed} of them failed" if failed else "")


def best_value(study: Mapping[str, Any]) -> float | str | None:
    """The best trial's first value; None without one, and with several directions."""
    best = study.get("best")
    return best["values"][0] if best else None


def params(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def columns(rows: Iterable[Iterable[str]], indent: str = "  ") -> list[str]:
    """Lines with aligned cells; the last cell of a row is not padded."""
    table = [list(row) for row in rows]
    widths: list[int] = []
    for row in table:
        for column, cell in enumerate(row[:-1]):
            widths[column:] = widths[column:] or [0]
            widths[column] = max(widths[column], len(cell))
    return [
        (indent + "  ".join([*(cell.ljust(widths[i]) for i, cell in enumerate(row[:-1])), row[-1]])).rstrip()
        for row in table
    ]
