"""`hpo db`: upgrade, copy and back up the database, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hpo_service.cli import wording
from hpo_service.cli.exits import UsageError
from hpo_service.cli.options import DEFAULT_DATABASE, AsJson, Database, print_result, without_password

db_app = typer.Typer(no_args_is_help=True, help="Look after the database.")


@db_app.command()
def upgrade(database: Database = DEFAULT_DATABASE, json: AsJson = False) -> None:
    """Bring the database to the schema of this version; nothing to do is fine."""
    from hpo_service import store

    with _usage_errors():
        store.upgrade(database)
    shown = without_password(database)
    print_result(json, {"database": shown, "upgraded": True}, [f"{shown} has the schema of this version"])


@db_app.command("copy")
def copy_database(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The database to copy, as for --database.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="An empty one, of the same kind or the other.")],
    json: AsJson = False,
) -> None:
    """Copy a database into an empty one, keys and all, from SQLite to PostgreSQL or back; no server may be running."""
    from hpo_service import store

    with _usage_errors():
        copied = store.copy(source, target)
    rows = [("table", "rows", "checksum"), *((each.name, str(each.rows), each.checksum) for each in copied)]
    lines = [*wording.columns(rows), f"{without_password(target)} holds all of it, read again and compared"]
    print_result(json, {"items": [asdict(table) for table in copied]}, lines)


@db_app.command("backup")
def back_up_database(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    database: Database = DEFAULT_DATABASE,
    json: AsJson = False,
) -> None:
    """Write the database into a file, also while servers run: for hpo serve (SQLite), or pg_restore (PostgreSQL)."""
    from hpo_service import store

    with _usage_errors():
        store.back_up(database, file)
    size = file.stat().st_size
    print_result(json, {"file": str(file), "bytes": size}, [f"{file}: {size} bytes"])


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn ValueError, for an invalid URL, into UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from None
