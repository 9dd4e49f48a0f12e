"""`hpo db` and `hpo token`: what works on the database itself, without a server."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo_service.cli.exits import CommandFailed, UsageError
from hpo_service.cli.options import DEFAULT_DATABASE, AsJson, Database, print_json, without_password

db_app = typer.Typer(no_args_is_help=True, help="Look after the database.")
token_app = typer.Typer(no_args_is_help=True, help="Keys for callers.")


@db_app.callback()
def _db() -> None:
    """Look after the database."""


@token_app.callback()
def _token() -> None:
    """Keys for callers."""


@db_app.command()
def upgrade(database: Database = DEFAULT_DATABASE, json: AsJson = False) -> None:
    """Bring the database to the schema of this version; nothing to do is fine."""
    from hpo_service import store

    try:
        store.upgrade(database)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if json:
        print_json({"database": without_password(database), "upgraded": True})
        return
    print(f"{without_password(database)} has the schema of this version")


@token_app.command("create")
def create_token(
    scope: Annotated[str, typer.Option(help="read, worker or admin.")],
    study: Annotated[list[str] | None, typer.Option("--study", help="Only for this study; may be repeated.")] = None,
) -> None:
    """Make a key (not in this version yet)."""
    raise CommandFailed("keys are not in this version yet; until then, leave the server on a loopback address")
