"""Copies a whole database into an empty one, of the same kind or the other: every row, verified, or nothing."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from hpo_service.domain.errors import Unavailable
from hpo_service.printable import without_password
from hpo_service.store.database_file import DatabaseFile
from hpo_service.store.engine import database_errors_translated, database_url, sqlite_file, writing_engine
from hpo_service.store.outages import BEAT_SECONDS
from hpo_service.store.schema import current_revision, newest_revision, upgrade_engine
from hpo_service.store.tables import metadata, outages, servers

Rows = list[tuple[Any, ...]]

ROWS_AT_ONCE = 5000
# A server that is there beats meanwhile, also a busy one.
LISTENED_SECONDS = 4 * BEAT_SECONDS
# What every server that has ever run there leaves: no reason to call a database used.
_TRACES = frozenset({servers, outages})
_CHECKSUM_BYTES = 16


@dataclass(frozen=True)
class CopiedTable:
    """checksum: the sum of the rows' hashes, so that their order does not matter."""

    name: str
    rows: int
    checksum: str


class NotCopied(Unavailable):
    """One of the two is not as it has to be; nothing was changed."""


def copy(source: str, target: str) -> list[CopiedTable]:
    """Raise DatabaseInUse, NotCopied, Unavailable, ValueError (a URL)."""
    urls = database_url(source), database_url(target)
    _check_apart(*urls)
    with ExitStack() as opened, database_errors_translated():
        read, write = (_Side(opened, url) for url in urls)
        read.check_is_there()
        read.hold()
        read.check_schema()
        write.hold()
        for side in (read, write):
            side.check_unserved()
        upgrade_engine(write.url)
        with read.transaction(), write.transaction():
            write.check_empty()
            return _copy(read, write)


def _check_apart(source: URL, target: URL) -> None:
    files = sqlite_file(source), sqlite_file(target)
    if None not in files:
        is_same = os.path.realpath(str(files[0])) == os.path.realpath(str(files[1]))
    else:
        is_same = source.set(password=None, query={}) == target.set(password=None, query={})
    if is_same:
        raise NotCopied("both are the same database")


def _copy(read: _Side, write: _Side) -> list[CopiedTable]:
    copied = []
    for table in reversed(metadata.sorted_tables):
        write.empty(table)
    for table in metadata.sorted_tables:
        here = _counted(table, write.inserted(table, read.rows(table)))
        there = _counted(table, write.rows(table))
        if there != here:
            raise NotCopied(
                f"{table.name} has {there.rows} rows there after the copy and {here.rows} here, or others: "
                "nothing was kept of it"
            )
        copied.append(here)
    for table in _numbered():
        write.count_on_from(table, read.counted(table))
    return copied


def _numbered() -> list[sa.Table]:
    """Tables whose ids the database counts, without ever using the id of a deleted row again."""
    return [table for table in metadata.sorted_tables if table.dialect_options["sqlite"]["autoincrement"]]


def _counted(table: sa.Table, pieces: Iterable[Rows]) -> CopiedTable:
    rows = checksum = 0
    for row in chain.from_iterable(pieces):
        digest = hashlib.blake2b(repr(row).encode(), digest_size=_CHECKSUM_BYTES).digest()
        checksum = (checksum + int.from_bytes(digest, "big")) % 256**_CHECKSUM_BYTES
        rows += 1
    return CopiedTable(table.name, rows, checksum.to_bytes(_CHECKSUM_BYTES, "big").hex())


class _Side:
    """A database in one transaction, its rows as the other one can take them: JSON as its text, booleans as 0 and 1."""

    def __init__(self, opened: ExitStack, url: URL) -> None:
        self.url, self._opened = url, opened
        self._file = sqlite_file(url)
        self._is_sqlite = self._file is not None

    @property
    def _said(self) -> str:
        return without_password(self.url.render_as_string(hide_password=True))

    def check_is_there(self) -> None:
        if self._file is not None and not self._file.exists():
            raise NotCopied(f"there is no database {self._file}")

    def hold(self) -> None:
        """Keep servers off SQLite's file. Raise DatabaseInUse where one is there."""
        if self._file is not None:
            self._opened.enter_context(closing(DatabaseFile(self._file)))
        self._engine = writing_engine(self.url)
        self._opened.callback(self._engine.dispose)

    def check_schema(self) -> None:
        with self._engine.connect() as connection:
            found = current_revision(connection)
        if found is None:
            raise NotCopied(f"{self._said} holds no record of this service")
        if found != newest_revision():
            raise NotCopied(
                f"{self._said} has schema {found}, and this version {newest_revision()}: first run hpo db upgrade on it"
            )

    def check_unserved(self) -> None:
        """Raise NotCopied where a server beats; of SQLite the file's lock has said so already."""
        if self._is_sqlite or not (before := self._beats()):
            return
        time.sleep(LISTENED_SECONDS)
        if self._beats() != before:
            raise NotCopied(f"a server is running on {self._said}: stop it first")

    def _beats(self) -> set[tuple[str, float]]:
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(servers.name):
                return set()
            return {(row.server_id, row.served_until) for row in connection.execute(sa.select(servers))}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nobody else writes meanwhile. All of it is kept, or nothing."""
        with self._engine.begin() as self._db:
            if not self._is_sqlite:
                for timeout in ("statement_timeout", "idle_in_transaction_session_timeout"):
                    self._db.execute(sa.text(f"SET LOCAL {timeout} = 0"))
                names = ", ".join(table.name for table in metadata.sorted_tables)
                self._db.execute(sa.text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))
            yield

    def check_empty(self) -> None:
        for table in metadata.sorted_tables:
            if table not in _TRACES and self._db.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
                raise NotCopied(f"{self._said} is not empty: {table.name} has rows. Name a new database")

    def empty(self, table: sa.Table) -> None:
        self._db.execute(sa.delete(table))

    def rows(self, table: sa.Table) -> Iterator[Rows]:
        result = self._db.execute(
            sa.select(*map(_portable, table.columns)),
            execution_options={"stream_results": True, "yield_per": ROWS_AT_ONCE},
        )
        with closing(result):
            rows = map(tuple, result)
            while some := list(islice(rows, ROWS_AT_ONCE)):
                yield some

    def inserted(self, table: sa.Table, pieces: Iterable[Rows]) -> Iterator[Rows]:
        """The same pieces, each once it is written."""
        for rows in pieces:
            self._insert(table, rows)
            yield rows

    def _insert(self, table: sa.Table, rows: Rows) -> None:
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        driver: Any = self._db.connection.dbapi_connection
        if self._is_sqlite:
            marks = ", ".join("?" * len(table.columns))
            driver.executemany(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", rows)  # noqa: S608 - our names
            return
        with driver.cursor().copy(f"COPY {table.name} ({columns}) FROM STDIN") as copying:
            for row in rows:
                copying.write_row(row)

    def counted(self, table: sa.Table) -> int:
        """The highest id that was ever drawn."""
        if self._is_sqlite:
            query = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name")
            return int(self._db.execute(query, {"name": table.name}).scalar() or 0)
        sequence = self._db.execute(_SEQUENCE, {"name": table.name}).scalar_one()
        query = sa.text(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}")  # noqa: S608
        return int(self._db.execute(query).scalar_one())

    def count_on_from(self, table: sa.Table, highest: int) -> None:
        if highest == 0:
            return
        if self._is_sqlite:
            self._db.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
            query = "INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :highest)"
            self._db.execute(sa.text(query), {"name": table.name, "highest": highest})
            return
        sequence = self._db.execute(_SEQUENCE, {"name": table.name}).scalar_one()
        self._db.execute(sa.select(sa.func.setval(sequence, highest)))


_SEQUENCE = sa.text("SELECT pg_get_serial_sequence(:name, 'id')")


def _portable(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    if isinstance(column.type, sa.JSON):
        return sa.cast(column, sa.Text).label(column.name)
    if isinstance(column.type, sa.Boolean):
        return sa.cast(column, sa.Integer).label(column.name)
    return column
