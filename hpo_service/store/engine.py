"""How a database is opened: SQLite in WAL mode with synchronous=FULL, PostgreSQL by psycopg 3."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url

from hpo_service import extras
from hpo_service.domain import nul
from hpo_service.domain.errors import Fault, Invalid, Unavailable
from hpo_service.printable import without_password
from hpo_service.store import database_file

# How long a batch waits for a lock on PostgreSQL: those of other batches last milliseconds.
LOCK_SECONDS = 0.25
# After so long PostgreSQL ends the transaction of a server that was stopped in it, and frees its locks.
IDLE_IN_TRANSACTION_SECONDS = 10
# A reader holds no locks, and on a busy machine it may take long to process what it has read.
READER_IDLE_SECONDS = 60
# A machine that vanishes without closing its connections, at either end, is given up after about 10 s.
_VANISHED = {"idle": 5, "interval": 2, "count": 3}
_VANISHED_MILLISECONDS = 10_000

Clock = Callable[[], float]


class _NulRefused(Invalid, sa.exc.DontWrapMixin):
    """Goes through SQLAlchemy as it is."""


def _dumps(document: Any) -> str:
    """JSON for a column. The last check for NUL characters, also for what does not come through the API."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    if nul.stands_in(text):
        raise _NulRefused([Fault("", nul.RULE)])
    return text


def database_url(text: str) -> URL:
    """Read a database URL; raise ValueError, without its password, for one that this service cannot run on."""
    try:
        url = make_url(text)
    except sa.exc.ArgumentError:
        raise ValueError(
            f"{without_password(text)!r} is no database URL; write sqlite:///hpo.db or postgresql://…"
        ) from None
    except ValueError:
        raise ValueError(f"{without_password(text)!r} is no database URL: its host or its port is none") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_url(url)
    if backend == "postgresql":
        if "@" in (url.host or ""):
            raise ValueError(
                "the password in the database URL has an @: there it is written %40 (/ is %2F, : is %3A, % is %25)"
            )
        if not extras.is_installed("postgres"):
            raise ValueError(f"PostgreSQL needs psycopg, which is not installed: {extras.install('postgres')}")
        return url.set(drivername="postgresql+psycopg")
    raise ValueError(f"{backend} is not supported; use sqlite:///… or postgresql://…")


def _sqlite_url(url: URL) -> URL:
    """Python's own driver, whichever is named; the other options of a connection are ours."""
    in_memory = not url.database or url.database == ":memory:" or url.database.startswith("file:")
    if in_memory or url.query.get("mode") == "memory":
        raise ValueError("SQLite needs a file, such as sqlite:///hpo.db: what is in memory dies with the process")
    if url.query:
        raise ValueError(f"SQLite takes no options here: leave out ?{'&'.join(url.query)} (a ? in a name is %3F)")
    return url.set(drivername="sqlite")


def sqlite_file(url: URL) -> Path | None:
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def writing_engine(url: URL, *, waits: bool = True) -> sa.Engine:
    """The engine of the one writer: every transaction takes the write lock at once.

    waits: wait for a lock that is held; else fail, on SQLite at once, on PostgreSQL after LOCK_SECONDS.
    """
    path = sqlite_file(url)
    if path is None:
        # psycopg drops the statements it has prepared at every rollback, and with them those prepared past it.
        return _postgres(url, pool_size=2, lock_seconds=0.0 if waits else LOCK_SECONDS)
    return _sqlite(url, path, "BEGIN IMMEDIATE", waits=waits, pool_size=1, max_overflow=1)


def reading_engine(url: URL) -> sa.Engine:
    """The engine of the readers, who never wait for the writer."""
    path = sqlite_file(url)
    if path is None:
        return _postgres(url, pool_size=8, idle_seconds=READER_IDLE_SECONDS, isolation="REPEATABLE READ")
    return _sqlite(url, path, "BEGIN", read_only=True, pool_size=8, max_overflow=32)


def _postgres(
    url: URL,
    pool_size: int,
    lock_seconds: float = 0.0,
    idle_seconds: int | None = None,
    isolation: Literal["REPEATABLE READ"] | None = None,
) -> sa.Engine:
    """lock_seconds: how long a lock is waited for; 0: as long as statements may take.

    isolation: who reads in several statements sees one state of the record by REPEATABLE READ.
    """
    idle = IDLE_IN_TRANSACTION_SECONDS if idle_seconds is None else idle_seconds
    settings = {
        "timezone": "UTC",
        # A server, a database or a role may set these otherwise: text or numbers would not be read as written.
        "standard_conforming_strings": "on",
        "extra_float_digits": 1,
        "default_transaction_isolation": "read\\ committed",
        "statement_timeout": 30_000,
        "idle_in_transaction_session_timeout": idle * 1000,
        "lock_timeout": round(lock_seconds * 1000),
        "tcp_user_timeout": _VANISHED_MILLISECONDS,
        **{f"tcp_keepalives_{what}": number for what, number in _VANISHED.items()},
    }
    return sa.create_engine(
        url,
        json_serializer=_dumps,
        pool_size=pool_size,
        max_overflow=32,
        pool_pre_ping=True,
        isolation_level=isolation,
        connect_args={
            "connect_timeout": 5,
            "client_encoding": "UTF8",
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
            "tcp_user_timeout": _VANISHED_MILLISECONDS,
            **{f"keepalives_{what}": number for what, number in _VANISHED.items()},
            # psycopg would prepare what it runs often, in whatever session a pooler gives it at the time.
            "prepare_threshold": None,
        },
    )


def _sqlite(
    url: URL, path: Path, begins: str, *, read_only: bool = False, waits: bool = True, **pool: int
) -> sa.Engine:
    engine = sa.create_engine(url, json_serializer=_dumps, creator=partial(database_file.connect, path), **pool)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin on its own terms otherwise
        for pragma in (
            "busy_timeout=10000",
            "journal_mode=WAL",
            "synchronous=FULL",  # NORMAL loses acknowledged results in a power cut
            "foreign_keys=ON",
            "query_only=ON" if read_only else "query_only=OFF",
            f"busy_timeout={10000 if waits else 0}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: sa.Connection) -> None:
        if not connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
            raw(connection, begins, ())

    return engine


class WrittenMeanwhile(Unavailable):
    """Another server has written the same row at the same moment. A second try reads it."""


def in_words_of_the_store(error: BaseException) -> BaseException:
    """The error that the caller gets: a rule of the schema that was broken is WrittenMeanwhile."""
    if not isinstance(error, sa.exc.IntegrityError):
        return error
    told = WrittenMeanwhile(f"somebody else has written the same in this moment: {one_line(error)}")
    told.__cause__ = error
    return told


@contextmanager
def database_errors_translated() -> Iterator[None]:
    """A database that is away, full or locked is Unavailable; a broken rule stays an IntegrityError."""
    try:
        yield
    except Exception as error:
        translated = translated_error(error)
        if translated is error:
            raise
        raise translated from error


def translated_error(error: BaseException) -> BaseException:
    """The same for an error that was caught."""
    is_broken_rule = isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)
    if is_broken_rule or not isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError | OSError):
        return error
    unavailable = Unavailable(f"the database cannot take the call now: {one_line(error)}")
    unavailable.__cause__ = error
    return unavailable


def is_locked(error: sa.exc.OperationalError) -> bool:
    """Whether SQLite's file was locked by somebody else."""
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_full(error: BaseException) -> bool:
    """Whether the disk, or what the database may grow to, had no room for what was written."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or getattr(error.orig, "sqlstate", None) == "53100"


def is_lock_timeout(error: BaseException) -> bool:
    """Whether PostgreSQL has waited for a lock for as long as it may."""
    return isinstance(error, sa.exc.DBAPIError) and getattr(error.orig, "sqlstate", None) == "55P03"


def one_line(error: BaseException) -> str:
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    text = " ".join(str(cause).split())
    return text[:300] or type(cause).__name__


def raw(connection: sa.Connection, statement: str, values: Sequence[Any]) -> Any:
    """One row of a hot query, past SQLAlchemy's compiler; `?` marks the values on either dialect."""
    driver: Any = connection.connection.dbapi_connection
    try:
        marked = statement if connection.dialect.name == "sqlite" else statement.replace("?", "%s")
        cursor = driver.execute(marked, values)
        return cursor.fetchone() if cursor.description else None
    except Exception as error:
        raise as_sqlalchemy(connection, error) from error


def database_time(connection: sa.Connection, clock: Clock | None = None) -> float:
    """Seconds since 1970 by this clock, or the database's; SQLite runs in this process, so that its clock is ours."""
    if clock is not None:
        return clock()
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(raw(connection, "SELECT extract(epoch FROM clock_timestamp())", ())[0])


def begin(connection: sa.Connection) -> None:
    """Begin a writing transaction, past SQLAlchemy, which may join it later; psycopg begins by itself."""
    if connection.dialect.name != "sqlite":
        return
    driver: Any = connection.connection.dbapi_connection
    try:
        driver.execute("BEGIN IMMEDIATE")
    except Exception as error:
        raise as_sqlalchemy(connection, error) from error


def commit(connection: sa.Connection) -> None:
    if connection.in_transaction():
        connection.commit()
        return
    try:
        connection.dialect.do_commit(connection.connection)
    except Exception as error:
        raise as_sqlalchemy(connection, error) from error


def as_sqlalchemy(connection: sa.Connection, error: Exception) -> Exception:
    """A driver's error as SQLAlchemy would have raised it; a connection that is lost is not used again."""
    dialect = connection.dialect
    driver = dialect.loaded_dbapi
    if not isinstance(error, driver.Error):
        return error
    lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    if lost:
        connection.invalidate(error)
    return sa.exc.DBAPIError.instance(
        None, None, error, driver.Error, hide_parameters=True, connection_invalidated=lost, dialect=dialect
    )
