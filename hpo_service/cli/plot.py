"""`hpo plot`: a study as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_service.cli import wording
from hpo_service.cli.exits import CommandFailed, UsageError, need
from hpo_service.cli.options import AsJson, Server, StudyName, connect, print_result
from hpo_service.cli.whole_files import writing

if TYPE_CHECKING:
    from hpo_service.client import Client

FORMATS = (".png", ".pdf", ".svg")
LARGEST_PAGE = 1000
MOST_TRIALS = 5000  # dots in a picture; more are not told apart


class PlotKind(StrEnum):
    history = "history"
    importance = "importance"
    slice = "slice"
    parallel = "parallel"
    contour = "contour"
    pareto = "pareto"
    curves = "curves"
    edf = "edf"
    timeline = "timeline"


def plot(
    study: StudyName,
    kind: Annotated[
        PlotKind | None, typer.Option("--kind", "-k", help="What is drawn; left out: what the study file asks for.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", help="Draw this one only, in slice, parallel and contour; several times for more."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.png", help="Default: STUDY.png or STUDY-KIND.png.")
    ] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Draw a study: of a kind, or as its file asks for (metadata.figure), or else the curves of the best trials.

    Without a kind and without reports there are no curves: then the values over trials and parameters.
    """
    file = output or Path(f"{study}.png" if kind is None else f"{study}-{kind}.png")
    check_picture_file(file)
    need("plot")
    with connect(server) as client:
        if kind is None:
            draw_study(client, study, file)
        else:
            _draw_kind(client, study, kind, parameter or (), file)
    print_result(json, {"picture": str(file)}, [f"wrote {file}"])


def check_picture_file(file: Path) -> None:
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"{file}: a picture's name ends in {', '.join(FORMATS)}")


def draw_study(client: Client, name: str, file: Path) -> None:
    from hpo_service.cli.pictures import PANELS, compares, draw

    study = client.study(name)
    has_order = len(study["directions"]) == 1
    every_trial = client.trials(name, order_by="value" if has_order else None, page_size=PANELS)
    best_first = wording.of_the_search(every_trial)
    trials = list(itertools.islice(best_first, PANELS))
    if compares(study) or not any(len(trial["reports"]) > 1 for trial in trials):
        trials += itertools.islice(best_first, MOST_TRIALS)
    if not any(trial["values"] for trial in trials):
        raise CommandFailed(f"{name} has no trial with a result to draw yet")
    with writing(file):
        draw(study, trials, file)


def _draw_kind(client: Client, name: str, kind: PlotKind, parameters: Sequence[str], file: Path) -> None:
    from hpo_service.cli.pictures import save
    from hpo_service.cli.study_plots import PLOTS, PlotData

    study = client.study(name)
    if unknown := [each for each in parameters if each not in study["search_space"]]:
        known = ", ".join(study["search_space"])
        raise UsageError(f"--parameter: {unknown[0]!r} is no parameter of {name}; it has {known}")
    trials = list(itertools.islice(wording.of_the_search(client.trials(name, page_size=LARGEST_PAGE)), MOST_TRIALS))
    importances = client.importances(name) if kind in (PlotKind.importance, PlotKind.contour) else {}
    drawn = PlotData.of(study, trials, importances, parameters)
    with writing(file):
        save(lambda: PLOTS[kind](drawn), file)
