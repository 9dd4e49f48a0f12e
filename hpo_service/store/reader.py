"""Reads the database and nothing else: no lock, no writer, no migrations, so that other processes may do it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy.engine import URL

from hpo_service.store import database_file
from hpo_service.store.engine import Clock, database_errors_translated, database_time, reading_engine, sqlite_file
from hpo_service.store.record import Record

T = TypeVar("T")


class Readable(Protocol):
    """The server's Database, or a Reader."""

    @property
    def url(self) -> URL: ...

    def read(self, work: Callable[[Record], T]) -> T: ...


class Reader:
    def __init__(self, url: URL, clock: Clock | None = None) -> None:
        """clock: seconds since 1970 for tests; by default the database's own."""
        self.url = url
        self.engine = reading_engine(url)
        self._path = sqlite_file(url)
        self._clock = clock

    def close(self) -> None:
        self.engine.dispose()

    def read(self, work: Callable[[Record], T]) -> T:
        """Run `work` on a snapshot; it must not write."""
        if self._path is not None:
            database_file.check(self._path)
        with database_errors_translated(), self.engine.connect() as connection:
            return work(Record(connection, database_time(connection, self._clock)))
