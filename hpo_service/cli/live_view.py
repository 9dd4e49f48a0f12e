"""A running study on stderr: a view that is redrawn on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo_service.cli import wording
from hpo_service.cli.confirmed_words import mean_and_interval
from hpo_service.client import Client
from hpo_service.domain.json_types import Json
from hpo_service.domain.objectives import built_in
from hpo_service.printable import printable, printable_values

MOST_RUNNING = 6  # trials shown one by one
MOST_ROUNDS = 4  # columns; of more rounds the first and the last ones
MOST_PARAMETERS = 8
LINE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    study: Json
    running: Sequence[Json] = ()
    elapsed_seconds: float = 0.0
    seconds_left: float | None = None  # None: unknown

    @property
    def is_done(self) -> bool:
        return self.study["state"] in wording.DONE

    def printable(self) -> Snapshot:
        """A copy with printable texts; made before the layout, since escapes make a text longer."""
        return replace(self, study=printable_values(self.study), running=printable_values(list(self.running)))


@dataclass
class Follower:
    """Polls a study, and estimates from its pace when it will be done."""

    client: Client
    name: str
    clock: Callable[[], float] = time.monotonic
    _began: float | None = None
    _finished_before: int = 0

    def snapshot(self) -> Snapshot:
        study = self.client.study(self.name)
        running = self.client.trials(self.name, state="RUNNING", page_size=MOST_RUNNING)
        now, finished = self.clock(), wording.finished(study)
        if self._began is None:
            self._began, self._finished_before = now, finished
        elapsed = now - self._began
        return Snapshot(
            study,
            list(itertools.islice(running, MOST_RUNNING)),
            elapsed,
            seconds_left(study, elapsed, finished - self._finished_before),
        )


def seconds_left(study: Json, elapsed: float, finished: int) -> float | None:
    """An estimate from the pace so far; None without a limit, before a trial has finished, and while confirming."""
    limit: int | None = study["limits"]["trials"]
    if limit is None or finished <= 0 or is_confirming(study):
        return None
    return max(0, limit - wording.finished(study)) * elapsed / finished


def is_confirming(study: Json) -> bool:
    return (study.get("confirmation") or {}).get("state") == "RUNNING"


class LiveDisplay:
    """Shows one snapshot after another: as a live view if stderr is a terminal, else in lines."""

    def __init__(self, server: str, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._server = server
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._said: tuple[object, ...] = ()
        self._said_at = float("-inf")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, which stays above the live view."""
        self._console.print(Text(printable(text)))

    def show(self, snapshot: Snapshot) -> None:
        snapshot = snapshot.printable()
        if self._live is not None:
            self._live.update(view(snapshot, self._server), refresh=True)
            return
        # a change of state or round at once, progress now and then
        study = snapshot.study
        happened = (study["state"], study.get("state_reason"), len(study["rounds"]), is_confirming(study))
        if happened != self._said or time.monotonic() - self._said_at >= LINE_EVERY_SECONDS:
            self._said, self._said_at = happened, time.monotonic()
            self._console.print(Text(line(snapshot)), soft_wrap=True)


def line(snapshot: Snapshot) -> str:
    """Everything in one line, for a log file."""
    study = snapshot.study
    parts = [f"{study['name']}: {study['state']}", _progress(study)]
    if reason := study.get("state_reason"):
        parts[0] += f" ({reason})"
    if len(study["rounds"]) > 1:
        parts.append(_round(study))
    if (best := wording.best_value(study)) is not None:
        parts.append(f"best {wording.number(best, 4)} (trial {study['best']['number']}, {wording.goal(study)})")
    if is_confirming(study):
        parts.append(confirming(study))
    parts.append(f"{study['counts']['RUNNING']} running" if not is_confirming(study) else _replicates(snapshot))
    if snapshot.seconds_left is not None and not snapshot.is_done:
        parts.append(f"about {wording.duration(snapshot.seconds_left)} left")
    return ", ".join(parts)


def view(snapshot: Snapshot, server: str) -> RenderableType:
    """The whole view: title, bar, best so far, the ranges of each round, what is running."""
    return Group(
        *_parts(snapshot),
        Text(f"dashboard  {server}/dashboard (password: a key from hpo token create --scope read)", style="dim"),
    )


def _parts(snapshot: Snapshot) -> Iterator[RenderableType]:
    study = snapshot.study
    title = Text.assemble((study["name"], "bold"), "  ", (study["state"], _STATE_STYLES.get(study["state"], "")))
    title.append(f"  {wording.goal(study)}", "dim")
    if study["narrowing"]:
        title.append(f"  {_round(study)}")
    yield title
    if reason := study.get("state_reason"):
        yield Text(reason, style="yellow")
    yield _bar(snapshot)
    yield _best(study)
    if is_confirming(study):
        yield Text(confirming(study))
    yield _ranges(study)
    yield from _running(snapshot)


_STATE_STYLES = {"ACTIVE": "green", "COMPLETED": "bold green", "PAUSED": "yellow", "CANCELLED": "red"}


def _progress(study: Json) -> str:
    limit = study["limits"]["trials"]
    failed = study["counts"]["FAIL"]
    trials = f"{wording.finished(study)}{f'/{limit}' if limit is not None else ''} trials"
    return f"{trials} ({failed} failed)" if failed else trials


def confirming(study: Json) -> str:
    """How many trials are confirmed with how many seeds, and which trial is first so far."""
    confirmation = study["confirmation"]
    best = f"the best {wording.count(confirmation['top'], 'trial')}"
    first = confirmation["ranking"][:1]
    so_far = f", first so far trial {first[0]['number']} with {mean_and_interval(first[0])}" if first else ""
    return f"confirming {best} with {confirmation['seeds']} seeds{so_far}"


def _replicates(snapshot: Snapshot) -> str:
    return f"{len(snapshot.running)}{'' if len(snapshot.running) < MOST_RUNNING else ' or more'} running"


def _round(study: Json) -> str:
    of_all = f" of {study['narrowing']['rounds']}" if study["narrowing"] else ""
    return f"{len(study['rounds'])}{of_all} rounds"


def _bar(snapshot: Snapshot) -> RenderableType:
    study, limit = snapshot.study, snapshot.study["limits"]["trials"]
    timing = wording.duration(snapshot.elapsed_seconds)
    if snapshot.seconds_left is not None and not snapshot.is_done:
        timing += f", about {wording.duration(snapshot.seconds_left)} left"
    row = Table.grid(padding=(0, 2))
    row.add_row(
        ProgressBar(total=limit, completed=wording.finished(study), width=40, pulse=limit is None),
        _progress(study),
        timing,
    )
    return row


def _best(study: Json) -> RenderableType:
    if "front" in study:
        return Text(f"best so far  {wording.count(len(study['front']), 'trial')} that no other beats")
    if not study.get("best"):
        return Text("best so far  none yet", style="dim")
    best = study["best"]
    return Text.assemble(
        "best so far  ",
        (wording.number(best["values"][0], 4), "bold"),
        f"  trial {best['number']}  {wording.params(best['params'])}",
    )


def _ranges(study: Json) -> RenderableType:
    """A row a parameter, a column a round, the current one bold."""
    rounds = study["rounds"]
    shown = rounds if len(rounds) <= MOST_ROUNDS else [rounds[0], *rounds[1 - MOST_ROUNDS :]]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("range")
    for one in shown:
        table.add_column(f"round {one['round']}", style="bold" if one is rounds[-1] else "dim", no_wrap=True)
    for name in list(study["search_space"])[:MOST_PARAMETERS]:
        cells = (one["search_space"].get(name) for one in shown)
        ranges = ("-" if cell is None else wording.parameter_range(cell) for cell in cells)
        table.add_row(*map(Text, (name, *ranges)))
    return table


def _running(snapshot: Snapshot) -> Iterator[RenderableType]:
    running = max(snapshot.study["counts"]["RUNNING"], len(snapshot.running))  # counts have no replicates
    yield Text(f"running  {running or 'nothing at the moment'}", style="" if running else "dim")
    table = Table.grid(padding=(0, 2))
    for trial in snapshot.running:
        last = trial["reports"][-1] if trial["reports"] else None
        value = "" if last is None else wording.number(last["value"])
        cells = (f"  trial {trial['number']}", _step(snapshot.study, trial, last), value, trial["worker_id"] or "")
        table.add_row(*map(Text, cells))  # as they are: rich would read [red] in a plain string as markup
    if snapshot.running:
        yield table
    if running > len(snapshot.running) > 0:
        yield Text(f"  and {running - len(snapshot.running)} more", style="dim")


def _step(study: Json, trial: Json, last: Json | None) -> str:
    if last is None:
        return "begins"
    objective = built_in(study["objective"])
    if objective is None:
        return f"step {last['step']}"
    steps = objective.steps(study["objective"], trial["params"])
    return f"{objective.step} {last['step']} of {wording.number(steps)}"
