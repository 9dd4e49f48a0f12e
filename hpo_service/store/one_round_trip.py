"""Several statements to PostgreSQL and back in one round trip, by libpq itself.

psycopg's cursors are made for any statement and any value: two statements in its pipeline take 190 µs of CPU, these
take 20. Statements are prepared once a connection; values go as text, and the database infers their types.

A prepared statement's name is a hash of its text, so that behind a pooler that shares sessions among its clients none
is run in another's place. Where such a pooler has lost prepared statements, or kept those of others, this server
prepares none any more.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import select
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NoReturn
from weakref import WeakSet

import sqlalchemy as sa
import structlog

from hpo_service.store.engine import as_sqlalchemy

Statement = tuple[str, Sequence[Any]]  # with %s for each of its values
Rows = list[tuple[bytes | None, ...]]

_PREPARED = "hpo_prepared"
_MOST_PREPARED = 200  # a connection: an INSERT is another statement for each number of rows
_WELL = (1, 2)  # libpq's PGRES_COMMAND_OK and PGRES_TUPLES_OK
_OF_OTHERS = ("26000", "42P05")  # SQLSTATE: there is no such prepared statement, or there is one already
_pooled: WeakSet[sa.Engine] = WeakSet()  # engines behind such a pooler: nothing is prepared for them

log = structlog.get_logger()


class NotThisSession(BaseException):
    """A prepared statement is missing, or there already; nothing was written. BaseException: no call catches it."""


def run(connection: sa.Connection, statements: Sequence[Statement]) -> list[Rows]:
    """Run them one after the other; return the rows of each, as text.

    The first that fails ends it: those after it do not run. Raise what SQLAlchemy would have raised.
    """
    return send(connection, statements).received()


def send(connection: sa.Connection, statements: Sequence[Statement]) -> RoundTrip:
    """Send them; until the `RoundTrip` has all results, nothing else may use the connection."""
    link: Any = connection.connection.dbapi_connection
    try:
        return RoundTrip(connection, link.pgconn, statements)
    except Exception as error:
        raise as_sqlalchemy(connection, error) from error


def array(texts: Iterable[str]) -> str:
    """A text[] as PostgreSQL reads it."""
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"


def numbers(integers: Iterable[int]) -> str:
    """A bigint[] as PostgreSQL reads it."""
    return "{" + ",".join(map(str, integers)) + "}"


def reader(columns: Sequence[sa.Column[Any]]) -> Callable[[Sequence[bytes | None]], Any]:
    """Return a function that turns a row's texts into a named tuple with these columns' names and types."""
    row = namedtuple("row", [column.name for column in columns])  # type: ignore[misc]
    kinds = [_reading(column.type) for column in columns]

    def read(cells: Sequence[bytes | None]) -> Any:
        return row(*[None if cell is None else kind(cell) for kind, cell in zip(kinds, cells, strict=True)])

    return read


def _reading(kind: sa.types.TypeEngine[Any]) -> Callable[[bytes], Any]:
    if isinstance(kind, sa.JSON):
        return json.loads
    if isinstance(kind, sa.Boolean):
        return lambda cell: cell == b"t"
    if isinstance(kind, sa.Integer):
        return int
    return float if isinstance(kind, sa.Float) else bytes.decode


def _prepared(connection: sa.Connection, pgconn: Any, wanted: int) -> set[str]:
    """The statements prepared on this connection; if there is no room for `wanted` more, all are dropped."""
    kept: set[str] = connection.connection.info.setdefault(_PREPARED, set())
    if len(kept) + wanted > _MOST_PREPARED:
        _check(connection.dialect.loaded_dbapi, pgconn.exec_(b"DEALLOCATE ALL"))
        kept.clear()
    return kept


@lru_cache(maxsize=1000)
def _name(text: str) -> bytes:
    return b"hpo_" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest().encode()


@lru_cache(maxsize=1000)
def _numbered(text: str) -> bytes:
    """The statement with libpq's numbered parameters: $1, $2 and so on."""
    numbers = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", text).encode()


def _cell(value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return repr(value).encode()


class RoundTrip:
    """Statements sent in one pipeline, where those that are new to the connection are prepared first."""

    def __init__(self, connection: sa.Connection, pgconn: Any, statements: Sequence[Statement]) -> None:
        self._connection, self._pgconn = connection, pgconn
        # psycopg, as SQLAlchemy has loaded it for this engine: a server on SQLite does without
        self._driver: Any = connection.dialect.loaded_dbapi
        self._kept: set[str] = set()
        self._new: list[str] = []
        if connection.engine in _pooled:
            pgconn.enter_pipeline_mode()
            for text, values in statements:
                pgconn.send_query_params(_numbered(text), list(map(_cell, values)))
        else:
            self._send_prepared(statements)
        pgconn.pipeline_sync()
        self._left = len(self._new) + len(statements)  # results that have not come yet
        self._results: list[Any] = []
        # Whether all has left; if not, `receive_available` sends the rest when the socket is writable.
        self.is_out = not pgconn.flush()
        self._is_all_here = False

    def _send_prepared(self, statements: Sequence[Statement]) -> None:
        texts = dict.fromkeys(text for text, _ in statements)
        self._kept = _prepared(self._connection, self._pgconn, len(texts))
        self._new = [text for text in texts if text not in self._kept]
        self._pgconn.enter_pipeline_mode()
        for text in self._new:
            self._pgconn.send_prepare(_name(text), _numbered(text))
        for text, values in statements:
            self._pgconn.send_query_prepared(_name(text), list(map(_cell, values)))

    @property
    def socket(self) -> int:
        """The file descriptor, readable when more results have come."""
        return int(self._pgconn.socket)

    def receive_available(self) -> bool:
        """Read the results that have come, without waiting; return whether all are here."""
        if not self._is_all_here:
            try:
                self._take()
            except Exception as error:
                raise as_sqlalchemy(self._connection, error) from error
        return self._is_all_here

    def received(self) -> list[Rows]:
        """Wait for the rows of each statement, by poll(): libpq's own waiting would not let other threads run."""
        poll = select.poll()
        while not self._is_all_here:
            poll.register(self.socket, select.POLLIN if self.is_out else select.POLLIN | select.POLLOUT)
            poll.poll()
            self.receive_available()
        try:
            return self._rows()
        except self._driver.Error as error:
            if error.sqlstate in _OF_OTHERS:
                self._prepare_no_more(error)
            raise as_sqlalchemy(self._connection, error) from error

    def _take(self) -> None:
        pgconn = self._pgconn
        pgconn.consume_input()
        if not self.is_out:
            self.is_out = not pgconn.flush()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                raise self._driver.OperationalError(f"the connection was lost: {pgconn.get_error_message()}")
            if self._left == 0:  # the result of the pipeline's sync
                pgconn.exit_pipeline_mode()
                self._is_all_here = True
                return
            pgconn.get_result()  # the end of this statement's results
            if len(self._results) < len(self._new) and result.status in _WELL:
                self._kept.add(self._new[len(self._results)])  # it stays prepared, even if a later statement fails
            self._results.append(result)
            self._left -= 1

    def _prepare_no_more(self, error: Exception) -> NoReturn:
        if self._connection.engine not in _pooled:
            _pooled.add(self._connection.engine)
            log.warning(
                "a pooler stands before PostgreSQL that keeps no prepared statements; none are prepared any more"
            )
        raise NotThisSession from error

    def _rows(self) -> list[Rows]:
        for result in self._results:
            _check(self._driver, result)
        results = self._results[len(self._new) :]
        return [
            [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]
            for result in results
        ]


def _check(driver: Any, result: Any) -> None:
    if result.status not in _WELL:
        raise driver.errors.error_from_result(result, encoding="utf-8")
