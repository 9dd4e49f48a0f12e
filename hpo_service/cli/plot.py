"""`hpo plot`: a study as a picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import say
from hpo_service.cli.exits import CommandFailed, UsageError, need
from hpo_service.cli.options import AsJson, Server, StudyName, connect, print_json

if TYPE_CHECKING:
    from hpo_service.client import Client

FORMATS = (".png", ".pdf", ".svg")
MOST_TRIALS = 5000  # dots in a picture; more are not told apart

Picture = Annotated[Path, typer.Option("-o", "--output", metavar="FILE.png", help="The picture to write.")]


def plot(study: StudyName, output: Picture, server: Server = None, json: AsJson = False) -> None:
    """Draw a study as its file asks for (metadata.figure), or else the curves of the twenty best trials.

    Without reports there are no curves: then the values over trials and parameters.
    """
    check_picture_file(output)
    need("plot")
    with connect(server) as client:
        draw_study(client, study, output)
    if json:
        print_json({"picture": str(output)})
        return
    say(f"wrote {output}")


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
    try:
        draw(study, trials, file)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None
