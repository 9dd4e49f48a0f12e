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
        return Sent(connection, link.pgconn, statements)
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


class _Prepared:
    """What a connection has prepared: each statement's name. No name is given twice, whatever became of the first."""

    def __init__(self) -> None:
        self.names: dict[str, bytes] = {}
        self._numbers = itertools.count()

    def new(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Names for those that are not prepared yet."""
        return {text: b"hpo_%d" % next(self._numbers) for text in dict.fromkeys(texts) if text not in self.names}


def _prepared(connection: sa.Connection, pgconn: Any, wanted: int) -> _Prepared:
    """What is prepared on this connection, with room for so many more."""
    kept: _Prepared = connection.connection.info.setdefault(_PREPARED, _Prepared())
    if len(kept.names) + wanted > _MOST_PREPARED:
        _check(pgconn.exec_(b"DEALLOCATE ALL"))
        kept.names.clear()
    return kept


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
    """Statements on their way. Statements that are new to the connection are prepared on the same way."""

    def __init__(self, connection: sa.Connection, pgconn: Any, statements: Sequence[Statement]) -> None:
        self._connection, self._pgconn = connection, pgconn
        kept = _prepared(connection, pgconn, len({text for text, _ in statements}))
        self._names, self._new = kept.names, kept.new(text for text, _ in statements)
        pgconn.enter_pipeline_mode()
        for text, name in self._new.items():
            pgconn.send_prepare(name, _numbered(text))
        for text, values in statements:
            pgconn.send_query_prepared(self._names.get(text) or self._new[text], list(map(_cell, values)))
        pgconn.pipeline_sync()
        self._left = len(self._new) + len(statements)  # results that have not come yet
        self._results: list[Any] = []
        self._is_out = not pgconn.flush()
        self._is_all_here = False

    @property
    def socket(self) -> int:
        """What becomes readable when there is more to take."""
        return int(self._pgconn.socket)

    @property
    def is_out(self) -> bool:
        """Whether all has left; else it goes on when the socket is writable, by looking whether it has `arrived`."""
        return self._is_out

    def arrived(self) -> bool:
        """Take what has come, without waiting; return whether that was all of it."""
        try:
            self._take()
        except Exception as error:
            raise as_sqlalchemy(self._connection, error) from error
        return self._is_all_here

    def received(self) -> list[Rows]:
        """The rows of each, waited for: libpq's own waiting would not let other threads run."""
        poll = select.poll()
        while not self._is_all_here:
            poll.register(self.socket, select.POLLIN if self._is_out else select.POLLIN | select.POLLOUT)
            poll.poll()
            self.arrived()
        try:
            return self._rows()
        except Exception as error:
            raise as_sqlalchemy(self._connection, error) from error

    def _take(self) -> None:
        pgconn = self._pgconn
        pgconn.consume_input()
        if not self._is_out:
            self._is_out = not pgconn.flush()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                raise psycopg.OperationalError(f"the connection was lost: {pgconn.get_error_message()}")
            if self._left == 0:  # this one is of the synchronization
                pgconn.exit_pipeline_mode()
                self._is_all_here = True
                return
            pgconn.get_result()  # the end of this statement's results
            self._results.append(result)
            self._left -= 1

    def _rows(self) -> list[Rows]:
        for result in self._results[: len(self._new)]:
            _check(result)
        self._names.update(self._new)
        results = self._results[len(self._new) :]
        for result in results:
            _check(result)
        return [
            [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]
            for result in results
        ]


def _check(result: Any) -> None:
    if result.status not in _WELL:
        raise psycopg.errors.error_from_result(result, encoding="utf-8")
