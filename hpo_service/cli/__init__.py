"""The commands: what a person types. All but `serve`, `db` and `doctor` speak to a server, by the SDK."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from hpo_service import __version__
from hpo_service.cli import plot, run, serve, study_commands, watch
from hpo_service.cli.database_commands import db_app, token_app
from hpo_service.cli.exits import OK, fail
from hpo_service.cli.lifeline import hold_on_to_lifeline
from hpo_service.domain.errors import HpoError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hyperparameter optimization: a server that hands out trials, workers that train them.",
)
app.command("run")(run.run)
app.command("serve")(serve.serve)
app.command("watch")(watch.watch)
app.command("plot")(plot.plot)
for name in ("worker", "agent"):
    if find_spec(f"hpo_service.cli.{name}") is not None:
        app.command(name)(getattr(import_module(f"hpo_service.cli.{name}"), name))
app.add_typer(study_commands.app, name="study")
app.add_typer(db_app, name="db")
app.add_typer(token_app, name="token")


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit(OK)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options before the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    hold_on_to_lifeline()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="hpo")
    except HpoError as error:
        fail(error)
    except BrokenPipeError:
        # whoever read our output has enough; nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OK)
