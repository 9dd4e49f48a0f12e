"""`hpo study artifact`: takes home what was kept with the sealed test, or with a trial."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import say
from hpo_service.cli.exits import UsageError
from hpo_service.cli.options import AsJson, Server, StudyName, connect, print_json
from hpo_service.cli.whole_files import write_pieces


def artifact(
    study: StudyName,
    name: Annotated[str | None, typer.Argument(help="Such as network.npz; left out, they are listed.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; otherwise stdout.")] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Of this trial.", show_default="of the sealed test")] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Write an artifact of the sealed test, or of a trial, into a file; without a name, list them."""
    if name is not None and output is None and sys.stdout.isatty():
        raise UsageError("an artifact may be any bytes: name a file with -o")
    with connect(server) as client:
        if name is not None:
            write_pieces(client.artifact(study, trial, name), output)
            return
        items = client.artifacts(study, trial)
    if json:
        print_json({"items": items})
        return
    rows = [("name", "bytes", "attempt", "kept at", "sha256")]
    rows += [(item["name"], str(item["size"]), str(item["attempt"]), item["at"], item["sha256"]) for item in items]
    say(*wording.columns(rows))
