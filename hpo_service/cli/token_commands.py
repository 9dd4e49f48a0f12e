"""`hpo token`: keys for callers, made and ended on the database itself; a server that runs sees it within a second."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import note, say, say_json
from hpo_service.cli.exits import CommandFailed, UsageError
from hpo_service.cli.key_file import write_new
from hpo_service.cli.options import DEFAULT_DATABASE, AsJson, Database, print_result
from hpo_service.domain import key as keys
from hpo_service.domain.errors import Invalid
from hpo_service.domain.key import Scope

if TYPE_CHECKING:
    from hpo_service.operations.keys import NewKey
    from hpo_service.store import KeyTable

token_app = typer.Typer(no_args_is_help=True, help="Keys for callers.")


@token_app.command("create")
def create_token(
    scope: Annotated[Scope, typer.Option(help="read: look; worker: look and train; admin: everything.")],
    study: Annotated[
        list[str] | None, typer.Option("--study", metavar="NAME", help="Only for this study; may be repeated.")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it ends: 30d, 12h, 90m, 45s from now.", show_default="never"),
    ] = None,
    label: Annotated[str, typer.Option(help="What it is for, to know it by in hpo token list.")] = "",
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the key to this file, for its owner's eyes, instead of showing it; "
            "nothing is done if the file holds such a key already.",
        ),
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: AsJson = False,
) -> None:
    """Make a key. It is shown this once: the database keeps its hash only."""
    from hpo_service.operations import keys as operations

    with _table(database) as table:
        life_seconds = None if expires is None else keys.seconds_of(expires)
        if file is not None and _holds_live_key(table, file, scope, study):
            _say_written(file, None, json)
            return
        keep = None if file is None else partial(_write, file)
        drawn = operations.create(table, scope, study or None, life_seconds, label, keep)
    if file is not None:
        _say_written(file, drawn, json)
    elif json:
        say_json({"token": drawn.token, **operations.key_resource(drawn.key, drawn.key.created_at)})
    else:
        note(f"{_described(drawn)}. It is shown this once:")
        say(drawn.token)


@token_app.command("list")
def list_tokens(database: Database = DEFAULT_DATABASE, json: AsJson = False) -> None:
    """List the keys there are and were, without the keys themselves."""
    from hpo_service.operations import keys as operations

    with _table(database) as table:
        items = operations.listed(table)
        unreadable = table.unreadable
    for said in unreadable:
        note(f"hpo: {said}; it opens nothing")
    rows = [("id", "scope", "studies", "state", "created", "expires", "label"), *map(_row, items)]
    print_result(json, {"items": items}, wording.columns(rows))


@token_app.command("revoke")
def revoke_token(
    id: Annotated[str, typer.Argument(metavar="ID", help="As hpo token list shows it.")],
    database: Database = DEFAULT_DATABASE,
    json: AsJson = False,
) -> None:
    """End a key, for good. Servers refuse it within a second."""
    from hpo_service.operations import keys as operations

    if id.startswith(keys.PREFIX):
        raise UsageError("this looks like a key itself; a key is revoked by its id, which hpo token list shows")
    with _table(database) as table:
        key = operations.revoke(table, id)
    print_result(json, key, [f"key {id} is revoked"])


@contextmanager
def _table(database: str) -> Iterator[KeyTable]:
    """The key table of this database, which is created or upgraded first if necessary. Raise UsageError."""
    from hpo_service import store

    try:
        store.upgrade_if_needed(database)
        with closing(store.KeyTable(database)) as table:
            yield table
    except Invalid as error:
        options = {"/studies": "--study", "/expires": "--expires", "/label": "--label"}
        raise UsageError("; ".join(f"{options[at]}: {rule}" for at, rule in error.faults)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _holds_live_key(table: KeyTable, file: Path, scope: Scope, studies: list[str] | None) -> bool:
    """Whether the file holds a live key of this kind. Raise CommandFailed if it holds what must not be overwritten."""
    from hpo_service.operations import keys as operations

    token = _read(file)
    if token and keys.form_fault(token) is not None:
        raise CommandFailed(f"{file} holds something that is not a key; it is left as it is: name another file")
    key = operations.find_live(table, token)
    if key is None:
        return False
    if key.scope is not scope or key.studies != (frozenset(studies) if studies else None):
        raise CommandFailed(
            f"{file} holds a live key of another kind, {key.id} for {key.scope}; it is left as it is: name another "
            f"file, or end that key first with hpo token revoke {key.id}"
        )
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        note(f"hpo: {file} has the mode {mode:04o}, so that others may read the key: chmod 600 it")
    return True


def _read(file: Path) -> str:
    """What the file holds; "" if it is not there."""
    try:
        if file.exists() and not file.is_file():
            raise CommandFailed(f"{file} is no ordinary file: name another one")
        return file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None


def _write(file: Path, token: str) -> None:
    """Replace the file atomically; it is readable by its owner only."""
    new = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    try:
        write_new(new, token)
        os.replace(new, file)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise CommandFailed(f"{file} cannot be written: {error.strerror}; no key was made") from None


def _say_written(file: Path, drawn: NewKey | None, json: bool) -> None:
    line = f"{file} holds such a key already" if drawn is None else f"{_described(drawn)}, in {file}"
    print_result(json, {"file": str(file), "created": drawn is not None}, [line])


def _described(drawn: NewKey) -> str:
    studies = drawn.key.studies
    where = "" if studies is None else f" of {', '.join(sorted(studies))}"
    return f"key {drawn.key.id} for {drawn.key.scope}{where}"


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    studies = "all" if item["studies"] is None else " ".join(item["studies"])
    expires = item["expires_at"] or "never"
    return item["id"], item["scope"], studies, item["state"], item["created_at"], expires, item["label"]
