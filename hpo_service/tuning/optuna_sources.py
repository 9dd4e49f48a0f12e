"""Where studies of Optuna's own lie: a database by its URL, its journal file, or a plain path to either."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

_SQLITE_HEADER = b"SQLite format 3\0"


class CannotBeRead(Exception):
    """No Optuna database, or a study that a search space of ours cannot describe."""


@dataclass(frozen=True)
class Source:
    """name: says which storage it is, without a password; the same for each way to write it."""

    name: str
    storage: BaseStorage


def open_source(place: str) -> Source:
    """Open for reading; nothing is created or changed. Raise CannotBeRead."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    scheme, separator, rest = place.partition("://")
    if not separator:
        return _file(Path(place))
    dialect, _, driver = scheme.partition("+")
    if dialect == "sqlite":
        return _file(Path(unquote(rest.partition("?")[0]).removeprefix("/")))
    if dialect == "journal":
        return _file(Path(rest))
    if dialect == "postgresql" and not driver:
        place = f"postgresql+psycopg://{rest}"
    return Source(f"{dialect}://{rest.rpartition('@')[2].partition('?')[0]}", _database(place))


def _file(path: Path) -> Source:
    where = path.absolute()
    if not where.exists():
        raise CannotBeRead("there is no such file")
    if not where.is_file():
        raise CannotBeRead("that is no file")
    try:
        with where.open("rb") as file:
            beginning = file.read(100)
    except OSError as error:
        raise CannotBeRead(f"it cannot be read: {error.strerror}") from None
    if beginning.startswith(_SQLITE_HEADER):
        _check_tables(where)
        return Source(f"sqlite:///{where}", _database(f"sqlite:///{where}"))
    if beginning.lstrip().startswith(b"{"):
        return Source(f"journal://{where}", _journal(where))
    what = "it is empty" if not beginning else "it is neither an SQLite database nor a journal file of Optuna's"
    raise CannotBeRead(what)


def _check_tables(path: Path) -> None:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        except sqlite3.Error as error:
            raise CannotBeRead(f"it cannot be read: {error}") from None
    if not {"studies", "trials"} <= names:
        raise CannotBeRead("it is an SQLite database, but none of Optuna's: it lacks the table studies")


def _database(url: str) -> BaseStorage:
    try:
        return RDBStorage(url, skip_table_creation=True)
    except Exception as error:
        if isinstance(error, RuntimeError) and "optuna storage upgrade" in str(error):
            raise CannotBeRead(
                "an earlier version of Optuna made this database: run `optuna storage upgrade --storage URL` with "
                "this URL first, on a copy if it is still in use"
            ) from None
        words = in_a_line(error.__cause__ or error)
        raise CannotBeRead(f"no database of Optuna's can be read there: {words}") from None


def in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _journal(path: Path) -> BaseStorage:
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:
        raise CannotBeRead(f"no journal of Optuna's can be read there: {in_a_line(error)}") from None
