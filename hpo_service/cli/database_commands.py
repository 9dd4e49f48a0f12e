"""`hpo db`: what looks after the database itself, without a server."""

from __future__ import annotations

import typer

from hpo_service.cli.console import say
from hpo_service.cli.exits import UsageError
from hpo_service.cli.options import DEFAULT_DATABASE, AsJson, Database, print_json, without_password

db_app = typer.Typer(no_args_is_help=True, help="Look after the database.")


@db_app.callback()
def _db() -> None:
    """Look after the database."""


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
    say(f"{without_password(database)} has the schema of this version")
