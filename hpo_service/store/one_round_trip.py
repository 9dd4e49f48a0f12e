"""Several statements to PostgreSQL and back in one round trip, by libpq itself.

psycopg's cursors are made for any statement and any value: two statements in its pipeline take 190 µs of CPU, these
take 20. Statements are prepared once a connection; values go as text, and what type they are the database knows.
"""

from __future__ import annotations

import itertools
import json
import re
import select
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import ExecStatus

from hpo_service.store.engine import as_sqlalchemy

Statement = tuple[str, Sequence[Any]]  # with %s for each of its values
Rows = list[tuple[bytes | None, ...]]

_PREPARED = "hpo_prepared"
_MOST_PREPARED = 200  # a connection; the statements are few but for the numbers of rows in one
_WELL = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


def run(connection: sa.Connection, statements: Sequence[Statement]) -> list[Rows]:
    """Run them one after the other; return the rows of each, as text.

    The first that fails ends it: those after it do not run. Raise what SQLAlchemy would have raised.
    """
    return send(connection, statements).received()


def send(connection: sa.Connection, statements: Sequence[Statement]) -> Sent:
    """The same in two steps; nothing else may go over the connection between them."""
    link: Any = connection.connection.dbapi_connection
    try:
        prepared = [(_name(connection, link.pgconn, text), list(map(_cell, values))) for text, values in statements]
        return Sent(connection, link.pgconn, prepared)
    except Exception as error:
        raise as_sqlalchemy(connection, error) from error


def array(texts: Iterable[str]) -> str:
    """A text[] as PostgreSQL reads it."""
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"


def reader(columns: Sequence[sa.Column[Any]]) -> Callable[[Sequence[bytes | None]], Any]:
    """What makes of a row's texts a row with these columns' names and types."""
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


def _name(connection: sa.Connection, pgconn: Any, text: str) -> bytes:
    names: dict[str, bytes] = connection.connection.info.setdefault(_PREPARED, {})
    name = names.get(text)
    if name is None:
        name = b"hpo_%d" % (len(names) % _MOST_PREPARED)
        if len(names) >= _MOST_PREPARED:
            _check(pgconn.exec_(b"DEALLOCATE ALL"))
            names.clear()
        _check(pgconn.prepare(name, _numbered(text)))
        names[text] = name
    return name


@lru_cache(maxsize=1000)
def _numbered(text: str) -> bytes:
    """libpq counts the places of the values: $1, $2 and so on."""
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


class Sent:
    """Statements on their way."""

    def __init__(
        self, connection: sa.Connection, pgconn: Any, prepared: Sequence[tuple[bytes, list[bytes | None]]]
    ) -> None:
        self._connection, self._pgconn, self._count = connection, pgconn, len(prepared)
        pgconn.enter_pipeline_mode()
        for name, values in prepared:
            pgconn.send_query_prepared(name, values)
        pgconn.pipeline_sync()
        self._link = _Link(pgconn)
        self._link.send()

    def received(self) -> list[Rows]:
        """Wait for the rows of each."""
        try:
            return self._received()
        except Exception as error:
            raise as_sqlalchemy(self._connection, error) from error

    def _received(self) -> list[Rows]:
        results = []
        for _ in range(self._count):
            results.append(self._link.result())
            self._pgconn.get_result()  # the end of this statement's results
        self._link.result()  # of the synchronization
        self._pgconn.exit_pipeline_mode()
        for result in results:
            _check(result)
        return [
            [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]
            for result in results
        ]


class _Link:
    """Waits for the other side, which libpq's own waiting would do without letting other threads run."""

    def __init__(self, pgconn: Any) -> None:
        self._pgconn = pgconn
        self._poll = select.poll()

    def send(self) -> None:
        while self._pgconn.flush():
            self._poll.register(self._pgconn.socket, select.POLLIN | select.POLLOUT)
            if any(event & select.POLLIN for _, event in self._poll.poll()):
                self._pgconn.consume_input()  # else both sides could wait for each other
        self._poll.register(self._pgconn.socket, select.POLLIN)

    def result(self) -> Any:
        while self._pgconn.is_busy():
            self._poll.poll()
            self._pgconn.consume_input()
        result = self._pgconn.get_result()
        if result is None:
            raise psycopg.OperationalError(f"the connection was lost: {self._pgconn.get_error_message()}")
        return result


def _check(result: Any) -> None:
    if result.status not in _WELL:
        raise psycopg.errors.error_from_result(result, encoding="utf-8")
