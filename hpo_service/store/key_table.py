"""The keys' table, with connections of its own: it is read and written beside a running server, on SQLite too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from hpo_service.domain.key import Key, Scope
from hpo_service.store.engine import (
    database_errors_translated,
    database_time,
    database_url,
    reading_engine,
    writing_engine,
)
from hpo_service.store.tables import keys

# Differs as soon as any key that is not revoked has come, gone or changed, by whatever hand. The database puts it
# together: at 10,000 keys that takes a tenth of the time of making them all again.
_STATE = {
    "sqlite": sa.text(
        "SELECT group_concat(id), group_concat(hash), group_concat(scope), group_concat(label, char(10)),"
        " group_concat(ifnull(studies, '*')), group_concat(ifnull(expires_at, '*'))"
        " FROM hpo_keys WHERE revoked_at IS NULL"
    ),
    "postgresql": sa.text(
        "SELECT md5(string_agg(CAST(key AS text), ',')) FROM hpo_keys AS key WHERE key.revoked_at IS NULL"
    ),
}
# studies as text: if one is no list of names, its key alone is invalid, and the others can be read
_KEYS = sa.select(
    *(keys.c.id, keys.c.hash, keys.c.label, keys.c.scope, sa.cast(keys.c.studies, sa.Text)),
    *(keys.c.created_at, keys.c.expires_at, keys.c.revoked_at),
)
_YEAR_10000 = 253_402_300_800.0


class KeyTable:
    """Needs this version's schema. `now` is the database's clock."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        parsed = database_url(url)
        self._writer, self._reader = writing_engine(parsed), reading_engine(parsed)
        self._clock = clock
        self._known: tuple[tuple[str | None, ...], list[Key]] = ((), [])
        self.unreadable: tuple[str, ...] = ()  # what is no key among the rows read last, in words

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()

    def live(self) -> list[Key]:
        """The keys that are valid now."""
        with self._connected(self._reader) as connection:
            now = self._now(connection)
            state = tuple(connection.execute(_STATE[connection.dialect.name]).one())
            if state != self._known[0]:
                self._known = state, self._read(connection, _KEYS.where(keys.c.revoked_at.is_(None)))
        return [key for key in self._known[1] if key.expires_at is None or key.expires_at > now]

    def all(self) -> tuple[list[Key], float]:
        """Every key there ever was, oldest first, and now."""
        with self._connected(self._reader) as connection:
            query = _KEYS.order_by(keys.c.created_at, keys.c.id)
            return self._read(connection, query), self._now(connection)

    def add(self, make: Callable[[float], Key], *, only_as_the_first: bool = False) -> Key | None:
        """Add the key made for now; None if there shall be no other and there is one."""
        with self._connected(self._writer) as connection:
            if only_as_the_first:
                if connection.dialect.name == "postgresql":
                    # two servers may see the empty table in the same moment
                    connection.execute(sa.text("LOCK TABLE hpo_keys IN SHARE ROW EXCLUSIVE MODE"))
                if connection.execute(sa.select(keys.c.id).limit(1)).first() is not None:
                    return None
            key = make(self._now(connection))
            connection.execute(sa.insert(keys), _row(key))
        return key

    def revoke(self, id: str) -> Key | None:
        """The key as it then reads, the time of its first revocation kept; None if there is none."""
        with self._connected(self._writer) as connection:
            first = sa.and_(keys.c.id == id, keys.c.revoked_at.is_(None))
            connection.execute(sa.update(keys).where(first).values(revoked_at=self._now(connection)))
            found = self._read(connection, _KEYS.where(keys.c.id == id))
        return found[0] if found else None

    @contextmanager
    def _connected(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        with database_errors_translated(), engine.begin() as connection:
            yield connection

    def _now(self, connection: sa.Connection) -> float:
        return database_time(connection, self._clock)

    def _read(self, connection: sa.Connection, query: sa.Select[Any]) -> list[Key]:
        found, unreadable = [], []
        for row in connection.execute(query):
            try:
                found.append(_key_of(*row))
            except ValueError as error:
                unreadable.append(f"the row of key {row[0]!r} in hpo_keys is no key: {error}")
        self.unreadable = tuple(unreadable)
        return found


def _key_of(
    id: Any, hash: Any, label: Any, scope: Any, studies: Any, created_at: Any, expires_at: Any, revoked_at: Any
) -> Key:
    """Raise ValueError for what others have written there: SQLite takes any type, and either database any list."""
    for name, text in (("id", id), ("hash", hash), ("label", label)):
        if not isinstance(text, str):
            raise ValueError(f"its {name} is no text")
    times = ("created_at", created_at), ("expires_at", expires_at or 0.0), ("revoked_at", revoked_at or 0.0)
    for name, time in times:
        if not isinstance(time, float | int) or not 0 <= time < _YEAR_10000:
            raise ValueError(f"its {name} is no time in seconds since 1970")
    bound = None if studies is None else _names(studies)
    return Key(id, hash, label, Scope(scope), bound, created_at, expires_at, revoked_at)


def _names(studies: Any) -> frozenset[str]:
    """Raise ValueError for all but a list of names. NULL, which means every study, does not come here."""
    try:
        names = json.loads(studies)
    except (TypeError, ValueError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its studies are no list of names")
    return frozenset(names)


def _row(key: Key) -> dict[str, object]:
    studies = None if key.studies is None else sorted(key.studies)
    return {**vars(key), "scope": key.scope.value, "studies": studies}
