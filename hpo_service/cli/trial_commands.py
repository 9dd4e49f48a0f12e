"""`hpo trial …`: the trials of a study, looked at and steered one by one."""

from __future__ import annotations

import itertools
import json as json_form
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import say, say_json
from hpo_service.cli.exits import UsageError
from hpo_service.cli.options import AsJson, Server, StudyName, connect, print_result

app = typer.Typer(no_args_is_help=True, help="Look at the trials of a study, and steer them.")

Trial = Mapping[str, Any]
MOST_SHOWN = 100  # in words; with --json all of them
BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 60  # characters
LONGEST_VALUE = 200  # characters


class ShownState(StrEnum):
    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class TrialOrder(StrEnum):
    number = "number"
    value = "value"


Number = Annotated[int, typer.Argument(metavar="N", min=0, help="The trial's number.")]


@app.command("list")
def list_trials(
    study: StudyName,
    state: Annotated[ShownState | None, typer.Option(help="Only those in this state.")] = None,
    order_by: Annotated[
        TrialOrder, typer.Option("--order-by", help="By value: best first, those without one last.")
    ] = TrialOrder.number,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """List the trials of a study; in words at most a hundred."""
    with connect(server) as client:
        trials = client.trials(study, state=state, order_by=order_by)
        if json:
            say_json({"items": list(trials)})
            return
        shown = list(itertools.islice(trials, MOST_SHOWN))
        more = next(trials, None) is not None
    if not shown:
        say(f"{study} has no {'trial' if state is None else f'{state} trial'} yet")
        return
    rows = [("N", "STATE", "VALUE", "STEPS", "PARAMS"), *map(_row, shown)]
    say(*wording.columns(rows, indent=""))
    if more:
        say(f"… and more; all of them: hpo trial list {study} --json, or hpo study export {study}")


def _row(trial: Trial) -> tuple[str, ...]:
    return (
        str(trial["number"]),
        trial["state"],
        _values(trial) or "-",
        str(len(trial["reports"])),
        wording.params(trial["params"]),
    )


def _values(trial: Trial) -> str:
    return ", ".join(wording.number(value, 4) for value in trial["values"] or ())


@app.command()
def show(study: StudyName, number: Number, server: Server = None, json: AsJson = False) -> None:
    """Show a trial: who drew it and why, its params, its curve, its attempts, how it ended."""
    with connect(server) as client:
        trial = client.trial(study, number)
        attempts = [] if json else client.attempts(study, number)
    print_result(json, trial, _lines(trial, attempts))


def _lines(trial: Trial, attempts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    values = _values(trial)
    yield f"trial {trial['number']} of {trial['study']}: {trial['state']}" + (f", value {values}" if values else "")
    if trial["reason"]:
        yield f"  {trial['reason']}"
    # A server of an older version does not send these.
    if trial.get("replicate_of") is not None:
        yield f"  it trains trial {trial['replicate_of']} again, to confirm it"
    yield from _section("Params", _cells(trial["params"]))
    if "sampler" in trial:
        yield from _section("Drawn by", [(trial["sampler"], trial.get("sampler_reason") or "")])
    if trial["reports"]:
        yield from ("", "Curve", f"  {curve(trial['reports'])}")
    yield from _section("Metrics", _cells(trial["metrics"] or {}))
    yield from _section("Artifacts", [(name, "") for name in trial.get("artifacts") or ()])
    yield from _section("Attempts", map(_attempt, attempts))


def _section(title: str, cells: Any) -> Iterator[str]:
    """A title and its cells in columns; nothing without cells."""
    if lines := wording.columns(cells):
        yield from ("", title, *lines)


def _cells(named: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name, textwrap.shorten(wording.number(value, 4), LONGEST_VALUE)) for name, value in named.items())


def _attempt(attempt: Mapping[str, Any]) -> tuple[str, ...]:
    ended = f"{attempt['end']} {attempt['ended_at']}" if attempt["end"] else "held"
    return str(attempt["attempt"]), str(attempt["worker_id"]), str(attempt["started_at"]), ended


def curve(reports: Sequence[Mapping[str, Any]]) -> str:
    """Reported values as bars in a line, from the first to the last, and these two as numbers."""
    values = [float(report["value"]) for report in reports]
    first, last = wording.number(reports[0]["value"], 4), wording.number(reports[-1]["value"], 4)
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    bars = "".join(_bar(value, low, high) for value in _thinned(values))
    of_steps = f"{wording.count(len(values), 'report')}, the last at step {reports[-1]['step']}"
    return f"{first} {bars} {last}  ({of_steps})"


def _thinned(values: Sequence[float]) -> list[float]:
    """Every n-th value, so that they fit into a line, the last one included."""
    every = math.ceil(len(values) / CURVE_WIDTH)
    return list(values[::-1][::every][::-1])


def _bar(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return " "
    # halved: the difference of two large floats may overflow
    height = (value / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.0
    return BARS[min(len(BARS) - 1, int(height * len(BARS)))]


@app.command()
def enqueue(
    study: StudyName,
    params: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE…", help="Its params; one that is missing is drawn.")
    ],
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Have a trial with these params given out next: hpo trial enqueue mine lr=0.01 optimizer=sgd

    A value is what the study's choices make of it, or JSON; everything else is text.
    """
    with connect(server) as client:
        space = client.study(study)["search_space"]
        given = dict(_param(each, space) for each in params)
        if len(given) < len(params):
            raise UsageError("a parameter is given twice")
        (trial,) = client.enqueue(study, [{"params": given}])
    line = f"trial {trial['number']} of {study} is {trial['state']}: {wording.params(trial['params'])}"
    print_result(json, trial, [line])


def _param(text: str, space: Mapping[str, Any]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not of the form name=value, such as lr=0.01")
    for choice in space.get(name, {}).get("choices") or ():
        if choice == value:  # the text "1" where that is a choice, and not the number
            return name, value
    try:
        return name, json_form.loads(value, parse_constant=_no_number)
    except ValueError:
        return name, value


def _no_number(constant: str) -> Any:
    raise ValueError(constant)


@app.command()
def stop(study: StudyName, number: Number, server: Server = None, json: AsJson = False) -> None:
    """Stop a trial: a running one learns it from its next report, a waiting one ends at once."""
    with connect(server) as client:
        trial = client.stop_trial(study, number)
    told = "told to stop with its next report or heartbeat"
    now = told if trial["state"] == ShownState.RUNNING else f"{trial['state']} ({trial['reason']})"
    print_result(json, trial, [f"trial {number} of {study} is {now}"])
