"""The command `hpo worker`, which is also `python -m hpo_worker`: the options, and what is printed at the end."""

from __future__ import annotations

import json as json_form
import os
from pathlib import Path
from typing import Annotated

import structlog
import typer

from hpo_worker import log_lines
from hpo_worker.cores import cores
from hpo_worker.failure_limit import MAX_FAILURES
from hpo_worker.gpus import Gpus, gpus_of
from hpo_worker.label_option import Label, labels_of
from hpo_worker.supervisor import Supervisor
from hpo_worker.worker_options import Options

MaxFailures = Annotated[
    int,
    typer.Option(
        min=0, help="End with exit code 1 after so many failed trials in a row, none of which has reported; 0: never."
    ),
]

log = structlog.get_logger()


def worker(
    server: Annotated[str | None, typer.Option(envvar="HPO_SERVER", help="The server's URL.")] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", "-p", min=1, max=1024, help="How many; left out, one a GPU or a core."),
    ] = None,
    study: Annotated[list[str] | None, typer.Option(help="Train this study only; may be given several times.")] = None,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when the studies give out no more trials.")
    ] = False,
    objective: Annotated[
        str | None, typer.Option(metavar="PACKAGE.MODULE:FUNCTION", help="Train with your own function.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="HPO_DATA", help="The folder with datasets other than mnist.")
    ] = None,
    max_failures: MaxFailures = MAX_FAILURES,
    label: Label = None,
    gpus: Gpus = None,
    json: Annotated[bool, typer.Option("--json", help="Print the trials trained as JSON.")] = False,
) -> None:
    """Train trials: of any study of the built-in network, or of the studies named.

    Exit code 1 when trials have failed and none came through.

    SIGTERM or Ctrl-C hands the trials in training back to the server; a second one ends at once.
    """
    if objective is not None and not study:
        raise typer.BadParameter("your own function trains the studies you name: give --study", param_hint="objective")
    log_lines.configure()
    options = Options(
        server=server,
        studies=tuple(study or ()),
        until_done=until_done,
        objective=objective,
        data=None if data is None else str(data.resolve()),
        max_failures=max_failures,
        labels=labels_of(label),
    )
    supervisor = Supervisor(options, os.environ, gpus_of(gpus))
    code = supervisor.run(processes or len(supervisor.gpus) or cores())
    failed, outcome_counts = supervisor.outcome_counts["FAIL"], supervisor.outcome_counts
    if code == 0 and not supervisor.signals and failed and not outcome_counts["COMPLETE"] + outcome_counts["PRUNED"]:
        log.error("no trial came through", failed=failed)
        code = 1
    if json:
        typer.echo(json_form.dumps({"trials": dict(supervisor.outcome_counts)}))
    else:
        log.info("trials", **supervisor.outcome_counts)
    raise typer.Exit(code)
