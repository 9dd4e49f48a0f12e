"""The keys' table, with connections of its own: it is read and written beside a running server, on SQLite too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from hpo_service.domain.key import Key, Scope
from hpo_service.store.engine import database_errors_translated, database_url, reading_engine, writing_engine
from hpo_service.store.tables import keys

_HOW_MANY = sa.select(sa.func.count(), sa.func.count(keys.c.revoked_at)).select_from(keys)
_DATABASE_CLOCK = sa.select(sa.extract("epoch", sa.func.clock_timestamp()))


class KeyTable:
    """Needs this version's schema. `now` is the database's clock."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        parsed = database_url(url)
        self._writer, self._reader = writing_engine(parsed), reading_engine(parsed)
        self._clock = clock
        self._known: tuple[tuple[int, int], list[Key]] = ((0, 0), [])

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()

    def live(self) -> list[Key]:
        """The keys that open the door now."""
        with self._connected(self._reader) as connection:
            now = self._now(connection)
            # keys are only ever added, and revoked once: as long as these two numbers stay, so do the keys
            made, revoked = connection.execute(_HOW_MANY).one()
            if (made, revoked) != self._known[0]:
                unrevoked = self._read(connection, sa.select(keys).where(keys.c.revoked_at.is_(None)))
                self._known = (made, revoked), unrevoked
        return [key for key in self._known[1] if key.expires_at is None or key.expires_at > now]

    def all(self) -> tuple[list[Key], float]:
        """Every key there ever was, oldest first, and now."""
        with self._connected(self._reader) as connection:
            query = sa.select(keys).order_by(keys.c.created_at, keys.c.id)
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
            found = self._read(connection, sa.select(keys).where(keys.c.id == id))
        return found[0] if found else None

    @contextmanager
    def _connected(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        with database_errors_translated(), engine.begin() as connection:
            yield connection

    def _now(self, connection: sa.Connection) -> float:
        if self._clock is not None:
            return self._clock()
        if connection.dialect.name == "sqlite":
            return time.time()
        return float(connection.execute(_DATABASE_CLOCK).scalar_one())

    def _read(self, connection: sa.Connection, query: sa.Select[tuple[object, ...]]) -> list[Key]:
        return [_key_of(row) for row in connection.execute(query)]


def _key_of(row: sa.Row[tuple[object, ...]]) -> Key:
    values = row._asdict()
    studies = values.pop("studies")
    return Key(**{**values, "scope": Scope(values["scope"])}, studies=None if studies is None else frozenset(studies))


def _row(key: Key) -> dict[str, object]:
    studies = None if key.studies is None else sorted(key.studies)
    return {**vars(key), "scope": key.scope.value, "studies": studies}
